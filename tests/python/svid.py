"""SPIFFE as others speak it: a trust domain that is made with `cryptography`, whose JWT-SVIDs PyJWT signs, right or wrong; and
py-spiffe, which reads what the cluster issues.

`domain` makes a trust domain in a folder. `jwt` and `x509` print and write SVIDs of it, with what is wrong about them. `check`
reads an SVID and the bundle that is to vouch for it, and prints what they say.
"""

import argparse
import base64
import datetime
import hashlib
import hmac
import json
import pathlib
import time

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value):
    return base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def coordinate(value):
    """Of a point on P-256."""
    return base64url(value.to_bytes(32, "big"))


def write_key(path, key):
    pkcs8 = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(PEM, pkcs8, serialization.NoEncryption()))
    path.chmod(0o600)


def read_key(path):
    return serialization.load_pem_private_key(path.read_bytes(), None)


def key_usage(**wanted):
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names.split()})


def builder(subject, issuer, key, life):
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)])
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(seconds=life[0]))
        .not_valid_after(now + datetime.timedelta(seconds=life[1]))
    )


def domain(args):
    args.dir.mkdir(parents=True, exist_ok=True)
    ca_key, jwt_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    # All of the same name: a name proves nothing.
    ca = (
        builder("SPIRE", "SPIRE", ca_key, (-3600, 86400))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(uris("spiffe://" + args.name), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    for name, key in [("ca.key", ca_key), ("jwt.key", jwt_key), ("rsa.key", rsa_key)]:
        write_key(args.dir / name, key)
    (args.dir / "ca.pem").write_bytes(ca.public_bytes(PEM))
    point, modulus = jwt_key.public_key().public_numbers(), rsa_key.public_key().public_numbers()
    ec_key = {"kty": "EC", "crv": "P-256", "x": coordinate(point.x), "y": coordinate(point.y)}
    keys = [
        {"use": "x509-svid", "kty": "EC", "x5c": [base64.b64encode(ca.public_bytes(DER)).decode()]},
        {"use": "jwt-svid", "kid": args.kid, **ec_key},
        {"use": "jwt-svid", "kid": args.kid + "-rsa", "kty": "RSA", "n": number(modulus.n), "e": number(modulus.e)},
    ]
    bundle = {"keys": keys, "spiffe_sequence": args.sequence, "spiffe_refresh_hint": 60}
    (args.dir / "bundle.json").write_text(json.dumps(bundle))
    (args.dir / "kid").write_text(args.kid)


def uris(*texts):
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(text) for text in texts])


def token(args):
    now, kid = int(time.time()), (args.dir / "kid").read_text()
    claims = {"sub": args.sub, "aud": args.aud, "iat": now - 1, "exp": now + args.ends, "jti": str(time.time_ns())}
    if args.begins:
        claims["nbf"] = now + args.begins
    ec_key, rsa_key = read_key(args.dir / "jwt.key"), read_key(args.dir / "rsa.key")
    if args.wrong == "none":
        return jwt.encode(claims, None, algorithm="none", headers={"kid": kid})
    if args.wrong in ("hs256-ec", "hs256-rsa"):
        # PyJWT refuses to do this.
        key, kid = (ec_key, kid) if args.wrong == "hs256-ec" else (rsa_key, kid + "-rsa")
        header = {"alg": "HS256", "kid": kid, "typ": "JWT"}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
        secret = key.public_key().public_bytes(PEM, SPKI)
        return signed + "." + base64url(hmac.digest(secret, signed.encode(), hashlib.sha256))
    if args.wrong == "stranger":
        ec_key = ec.generate_private_key(ec.SECP256R1())
    if args.alg.startswith("ES"):
        return jwt.encode(claims, ec_key, algorithm=args.alg, headers={"kid": kid})
    return jwt.encode(claims, rsa_key, algorithm=args.alg, headers={"kid": kid + "-rsa"})


def certificate(args):
    args.out.mkdir(parents=True, exist_ok=True)
    key, ca_key = ec.generate_private_key(ec.SECP256R1()), read_key(args.dir / "ca.key")
    if args.wrong == "stranger":
        ca_key = ec.generate_private_key(ec.SECP256R1())
    life = {"ended": (-3600, -60), "not-yet": (600, 3600)}.get(args.wrong, (-60, 3600))
    is_ca = args.wrong == "ca"
    names = [args.id] + {"two-ids": [args.id + "2"], "two-uris": ["https://example.org"]}.get(args.wrong, [])
    uses = {"cert-sign": {"key_cert_sign": True}, "no-signature": {"digital_signature": False}}.get(args.wrong, {})
    svid = (
        builder("workload", "SPIRE", key, life)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(key_usage(**{"digital_signature": True, "key_agreement": True, **uses}), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(uris(*names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_key(args.out / "svid.key", key)
    (args.out / "svid.pem").write_bytes(svid.public_bytes(PEM))


def check(args):
    # It takes long to load, and making SVIDs does without.
    from spiffe import TrustDomain, X509Bundle, X509Svid

    svid = X509Svid.parse(args.svid.read_bytes(), args.key.read_bytes())
    assert svid.leaf.public_key() == svid.private_key.public_key(), "the key is another one's"
    document = json.loads(args.bundle.read_text())
    assert all(key["use"] == "x509-svid" and len(key["x5c"]) == 1 for key in document["keys"])
    told = b"".join(base64.b64decode(key["x5c"][0]) for key in document["keys"])
    bundle = X509Bundle.parse_raw(svid.spiffe_id.trust_domain, told)
    for key in document["keys"]:
        # A JWK of a certificate is its key.
        point = x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0])).public_key().public_numbers()
        assert coordinate(point.x) == key["x"] and coordinate(point.y) == key["y"]
    beside = X509Bundle.parse(TrustDomain(svid.spiffe_id.trust_domain.name), args.authorities.read_bytes())
    issuers = [bundle.x509_authorities, beside.x509_authorities]
    for authorities in issuers:
        signed = [ca for ca in authorities if vouches(ca, svid.leaf)]
        assert len(signed) == 1, f"{len(signed)} of {len(authorities)} authorities vouch for it"
    return {
        "spiffe_id": str(svid.spiffe_id),
        "sequence": document["spiffe_sequence"],
        "refresh_hint": document["spiffe_refresh_hint"],
        "authorities": len(bundle.x509_authorities),
        "beside": len(beside.x509_authorities),
        "issuer": signed[0].fingerprint(hashes.SHA256()).hex(),
    }


def vouches(authority, leaf):
    try:
        leaf.verify_directly_issued_by(authority)
        return True
    except Exception:
        return False


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("domain")
    make.add_argument("dir", type=pathlib.Path)
    make.add_argument("name")
    make.add_argument("--kid", default="key")
    make.add_argument("--sequence", type=int, default=1)
    make.set_defaults(run=domain)
    sign = commands.add_parser("jwt")
    sign.add_argument("dir", type=pathlib.Path)
    sign.add_argument("--sub", required=True)
    sign.add_argument("--aud", action="append", required=True)
    sign.add_argument("--alg", default="ES256")
    sign.add_argument("--ends", type=int, default=300)
    sign.add_argument("--begins", type=int, default=0)
    sign.add_argument("--wrong", default="")
    sign.set_defaults(run=token)
    issue = commands.add_parser("x509")
    issue.add_argument("dir", type=pathlib.Path)
    issue.add_argument("out", type=pathlib.Path)
    issue.add_argument("--id", required=True)
    issue.add_argument("--wrong", default="")
    issue.set_defaults(run=certificate)
    read = commands.add_parser("check")
    for name in ("svid", "key", "bundle", "authorities"):
        read.add_argument(name, type=pathlib.Path)
    read.set_defaults(run=check)
    args = parser.parse_args()
    answer = args.run(args)
    if answer is not None:
        print(answer if isinstance(answer, str) else json.dumps(answer))


if __name__ == "__main__":
    main()
