"""A client of the Mezite API made of nothing but what the server tells about itself.

It has no generated code and no copy of the protocol: the services, methods and messages come from gRPC server
reflection. It logs in, lists the users, and has an SSH public key certified.
"""

import argparse
import json
import pathlib

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "mezite.v1.AuthService"
HEALTH = "grpc.health.v1.Health"
TIMEOUT = 20


class Reflected:
    """Calls methods by their names, with fields by theirs."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)
        self.metadata = []

    def services(self):
        return sorted(self.database.get_services())

    def call(self, service, method, /, **fields):
        described = self.pool.FindServiceByName(service).FindMethodByName(method)
        request = message_factory.GetMessageClass(described.input_type)(**fields)
        reply = message_factory.GetMessageClass(described.output_type)
        stub = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        return stub(request, timeout=TIMEOUT, metadata=self.metadata)

    def enum_name(self, enum, number):
        return self.pool.FindEnumTypeByName(enum).values_by_number[number].name


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="host:port of an auth node")
    parser.add_argument("--server-name", required=True, help="name in the node's certificate")
    parser.add_argument("--ca", required=True, type=pathlib.Path, help="PEM of the cluster's TLS CA")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password-file", required=True, type=pathlib.Path)
    parser.add_argument("--key", required=True, type=pathlib.Path, help="SSH public key to certify")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the certificate and known_hosts")
    return parser.parse_args()


def users(api):
    names, token = [], ""
    while True:
        reply = api.call(SERVICE, "ListUsers", page_size=1, page_token=token)
        names += [user.name for user in reply.users]
        token = reply.next_page_token
        if not token:
            return names


def wrong_password(api, user):
    try:
        api.call(SERVICE, "AuthenticateLocal", username=user, password="not the password")
    except grpc.RpcError as error:
        return error.code().name
    return "accepted"


def main():
    args = arguments()
    password = args.password_file.read_text().strip()
    credentials = grpc.ssl_channel_credentials(root_certificates=args.ca.read_bytes())
    options = [("grpc.ssl_target_name_override", args.server_name)]
    with grpc.secure_channel(args.address, credentials, options) as channel:
        api = Reflected(channel)
        services = api.services()
        health = api.call(HEALTH, "Check", service=SERVICE).status
        refused = wrong_password(api, args.user)

        login = api.call(SERVICE, "AuthenticateLocal", username=args.user, password=password)
        api.metadata = [("authorization", f"Bearer {login.session_id}")]
        names = users(api)
        issued = api.call(SERVICE, "IssueUserCerts", ssh_public_keys=[args.key.read_text().strip()])
        api.call(SERVICE, "Logout")

        certificate = args.out / f"{args.key.stem}-cert.pub"
        certificate.write_text(issued.ssh_certificates[0] + "\n")
        (args.out / "known_hosts").write_text("".join(line + "\n" for line in issued.known_hosts))
        told = {
            "services": services,
            "health": api.enum_name("grpc.health.v1.HealthCheckResponse.ServingStatus", health),
            "wrong_password": refused,
            "users": names,
            "logins": list(issued.logins),
            "expires_at": issued.expires_at.seconds,
        }
        print(json.dumps(told))


if __name__ == "__main__":
    main()
