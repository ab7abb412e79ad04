"""AWS as tests need it, by AWS's own Python library: makes identities in an STS and IAM that runs locally, and signs.

`identities` makes a user and a role, and prints the credentials of both; from then on signatures are checked there.
`sign` prints what a joiner sends of a request that it has signed, or that it has signed wrongly.
"""

import argparse
import datetime
import json
import sys
import urllib.request

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

BODY = b"Action=GetCallerIdentity&Version=2011-06-15"
ANYTHING = json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
)
ANYBODY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}],
    }
)


def identities(endpoint):
    # It takes long to load, and signing does without.
    import boto3

    anybody = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    iam = boto3.client("iam", endpoint_url=endpoint, **anybody)
    iam.create_user(UserName="joiner", Path="/team/")
    iam.put_user_policy(UserName="joiner", PolicyName="anything", PolicyDocument=ANYTHING)
    user = iam.create_access_key(UserName="joiner")["AccessKey"]
    role = iam.create_role(RoleName="web", AssumeRolePolicyDocument=ANYBODY)["Role"]
    iam.put_role_policy(RoleName="web", PolicyName="anything", PolicyDocument=ANYTHING)
    sts = boto3.client("sts", endpoint_url=endpoint, **anybody)
    assumed = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="i-0abc")["Credentials"]
    # It checks signatures from the next request on.
    plain = {"Content-Type": "text/plain"}
    reset = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", headers=plain, method="POST")
    urllib.request.urlopen(reset).read()
    return {
        "user": {"key": user["AccessKeyId"], "secret": user["SecretAccessKey"], "token": ""},
        "role": {
            "key": assumed["AccessKeyId"],
            "secret": assumed["SecretAccessKey"],
            "token": assumed["SessionToken"],
        },
    }


def sign(wanted):
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Mezite-Challenge": wanted["challenge"],
        **wanted.get("more", {}),
    }
    for name in wanted.get("less", []):
        del headers[name]
    request = AWSRequest("POST", f"https://{wanted['host']}/", headers=headers, data=BODY)
    date = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=wanted.get("shift", 0))
    request.context["timestamp"] = request.headers["X-Amz-Date"] = date.strftime("%Y%m%dT%H%M%SZ")
    if wanted["token"]:
        request.headers["X-Amz-Security-Token"] = wanted["token"]
    credentials = Credentials(wanted["key"], wanted["secret"], wanted["token"] or None)
    auth = SigV4Auth(credentials, "sts", wanted.get("scope", wanted["region"]))
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    signed = auth.signed_headers(auth.headers_to_sign(request))
    scope = f"Credential={auth.scope(request)}"
    return {
        "authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders={signed}, Signature={signature}",
        "amz_date": request.headers["X-Amz-Date"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("identities").add_argument("endpoint")
    commands.add_parser("sign", help="what to sign is JSON on standard input")
    args = parser.parse_args()
    told = identities(args.endpoint) if args.command == "identities" else sign(json.load(sys.stdin))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
