r"""Make once, in an AWS account, what `ray up` needs for a study; --remove takes it away again.

    python cluster/aws/setup.py --region eu-west-2 --ssh-from 192.0.2.7/32 \
        --study s3://my-bucket/ukb --images s3://images/bulk

Roles (iam/*.json), a security group, a registry for the image, rules of the study's bucket (s3/*.json), a token, and
mine/cluster.yaml for `ray up`. Whatever is there already is brought to what these files say; data are never touched.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

HERE = Path(__file__).parent
TOKEN = Path("~/.dtg/token/token")
POLICIES = {"dtg-head": ("data", "head"), "dtg-worker": ("data",)}
NODES_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""Ubuntu with Docker, NVIDIA's driver and container runtime, and the aws command, kept up to date by AWS."""


def main(arguments: list[str] | None = None) -> int:
    """Make everything, or remove it."""
    options = parser().parse_args(arguments)
    session = boto3.Session(region_name=options.region)
    if options.remove:
        remove(session)
        return 0
    study, images = split(options.study), split(options.images)
    if not study[1]:
        sys.exit(
            "--study: got a bucket alone, expected a prefix in it, such as s3://my-bucket/ukb: rights are of a prefix"
        )
    account = session.client("sts").get_caller_identity()["Account"]
    values = {
        "REGION": options.region,
        "ACCOUNT": account,
        "REGISTRY": f"{account}.dkr.ecr.{options.region}.amazonaws.com",
        "STUDY_BUCKET": study[0],
        "STUDY_PREFIX": study[1],
        "IMAGES_BUCKET": images[0],
        "IMAGES_PREFIX": f"{images[1]}/" if images[1] else "",
        "IMAGE_ID": options.image_id or session.client("ssm").get_parameter(Name=NODES_IMAGE)["Parameter"]["Value"],
        "SECURITY_GROUP": security_group(session, options.vpc, options.ssh_from),
        "TOKEN_FOLDER": str(token(TOKEN.expanduser()).parent),
    }
    roles(session, values)
    registry(session)
    bucket(session, values)
    mine = Path(options.out)
    mine.parent.mkdir(parents=True, exist_ok=True)
    made = fill((HERE / "cluster.yaml").read_text(), values)
    if mine.exists() and mine.read_text() != made:
        mine.replace(mine.with_suffix(".yaml.before"))
        print(f"{mine} is new: the one before, with what you changed in it, is {mine.name}.before")
    mine.write_text(made)
    print(f"next: cluster/aws/build.sh {values['REGISTRY']} && ray up {mine}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Say what has to be known."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--region", required=True, help="of the images, the study and the nodes: traffic inside is free")
    top.add_argument("--study", help="s3://bucket/prefix; the nodes may read and write there")
    top.add_argument("--images", help="s3://bucket/prefix; the nodes may read there")
    top.add_argument("--ssh-from", metavar="CIDR", help="your own address, such as 192.0.2.7/32, and nobody else's")
    top.add_argument("--vpc", help="(default: the account's default one)")
    top.add_argument("--image-id", help="of the nodes (default: AWS's newest Deep Learning Base AMI)")
    top.add_argument("--out", default=str(HERE / "mine" / "cluster.yaml"), help="where the plan for `ray up` goes")
    top.add_argument("--remove", action="store_true", help="everything but the study, the images and the token")
    return top


def split(uri: str | None) -> tuple[str, str]:
    """Bucket and prefix of an s3:// URI, without slashes at their ends."""
    if not uri or not uri.startswith("s3://"):
        sys.exit(f"setup.py: got {uri!r}, expected --study and --images as s3://bucket/prefix")
    name, _, prefix = uri.removeprefix("s3://").strip("/").partition("/")
    return name, prefix


def fill(text: str, values: dict[str, str]) -> str:
    """Put values into the places that are written ${LIKE_THIS}."""
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    return text


def policy(kind: str, name: str, values: dict[str, str]) -> dict[str, Any]:
    """One of the JSON files, filled in."""
    content: dict[str, Any] = json.loads(fill((HERE / kind / f"{name}.json").read_text(), values))
    return content


def token(path: Path) -> Path:
    """A secret for Ray that only this user can read, unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    return path


def security_group(session: boto3.Session, vpc: str | None, ssh_from: str | None) -> str:
    """Nobody gets in but the nodes themselves and, by ssh, one address."""
    if not ssh_from or ssh_from.endswith("/0"):
        sys.exit(f"setup.py: got --ssh-from {ssh_from}, expected your own address, such as 192.0.2.7/32")
    ec2 = session.resource("ec2")
    networks = list(ec2.vpcs.filter(VpcIds=[vpc]) if vpc else ec2.vpcs.filter(Filters=[_is("is-default", "true")]))
    if not networks:
        sys.exit("setup.py: got an account without a default VPC, expected --vpc")
    here = [_is("group-name", "dtg"), _is("vpc-id", networks[0].id)]
    group = next(iter(ec2.security_groups.filter(Filters=here)), None) or networks[0].create_security_group(
        GroupName="dtg", Description="Ray cluster of dtg_ray: ssh from one address, all traffic inside"
    )
    if group.ip_permissions:
        group.revoke_ingress(IpPermissions=group.ip_permissions)
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]}
    group.authorize_ingress(IpPermissions=[ssh, {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group.id}]}])
    print(f"security group {group.id}: ssh from {ssh_from}, all traffic inside the group")
    return str(group.id)


def _is(name: str, value: str) -> dict[str, Any]:
    return {"Name": name, "Values": [value]}


def roles(session: boto3.Session, values: dict[str, str]) -> None:
    """The head may start and end nodes and use the data; workers may use the data."""
    iam = session.client("iam")
    for name, kinds in POLICIES.items():
        trust = json.dumps(policy("iam", "trust", values))
        _unless("EntityAlreadyExists", iam.create_role, RoleName=name, AssumeRolePolicyDocument=trust)
        for kind in kinds:
            document = json.dumps(policy("iam", kind, values))
            iam.put_role_policy(RoleName=name, PolicyName=kind, PolicyDocument=document)
        _unless("EntityAlreadyExists", iam.create_instance_profile, InstanceProfileName=name)
        _unless("LimitExceeded", iam.add_role_to_instance_profile, InstanceProfileName=name, RoleName=name)
        print(f"role {name}: {', '.join(f'iam/{kind}.json' for kind in kinds)}")
    _unless("InvalidInput EntityAlreadyExists", iam.create_service_linked_role, AWSServiceName="spot.amazonaws.com")


def registry(session: boto3.Session) -> None:
    """A private place for the image."""
    scan = {"scanOnPush": True}
    create = session.client("ecr").create_repository
    _unless("RepositoryAlreadyExistsException", create, repositoryName="dtg", imageScanningConfiguration=scan)
    print("registry dtg: private, images are scanned when they come")


def bucket(session: boto3.Session, values: dict[str, str]) -> None:
    """Rules of the study's bucket, beside those it has."""
    s3, name = session.client("s3"), values["STUDY_BUCKET"]
    rules, wanted = policy("s3", "bucket-policy", values), policy("s3", "lifecycle", values)
    try:
        before = json.loads(s3.get_bucket_policy(Bucket=name)["Policy"])["Statement"]
    except ClientError as error:
        before = _nothing(error, "NoSuchBucketPolicy")
    ours = {statement["Sid"] for statement in rules["Statement"]}
    rules["Statement"] += [statement for statement in before if statement.get("Sid") not in ours]
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps(rules))
    try:
        before = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    except ClientError as error:
        before = _nothing(error, "NoSuchLifecycleConfiguration")
    wanted["Rules"] += [rule for rule in before if rule.get("ID") != "parts"]
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=wanted)
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=closed)
    print(f"bucket {name}: encrypted connections and objects alone, nothing public, parts of uploads go after 7 days")


def remove(session: boto3.Session) -> None:
    """Take away roles, registry and security group, when no node is left."""
    ec2, iam = session.resource("ec2"), session.client("iam")
    alive = _is("instance-state-name", "running"), _is("tag:ray-cluster-name", "dtg")
    if nodes := [node.id for node in ec2.instances.filter(Filters=list(alive))]:
        sys.exit(f"setup.py: got running nodes {', '.join(nodes)}, expected none: `ray down` first")
    for name, kinds in POLICIES.items():
        gone = "NoSuchEntity"
        _unless(gone, iam.remove_role_from_instance_profile, InstanceProfileName=name, RoleName=name)
        _unless(gone, iam.delete_instance_profile, InstanceProfileName=name)
        for kind in kinds:
            _unless(gone, iam.delete_role_policy, RoleName=name, PolicyName=kind)
        _unless(gone, iam.delete_role, RoleName=name)
    delete = session.client("ecr").delete_repository
    _unless("RepositoryNotFoundException", delete, repositoryName="dtg", force=True)
    for group in ec2.security_groups.filter(Filters=[_is("group-name", "dtg")]):
        group.delete()
    print("removed: roles, registry, security group; the study, the images and the bucket's rules stay")


def _unless(codes: str, call: Any, **arguments: Any) -> None:
    """Call AWS, where some errors say that nothing is left to do."""
    try:
        call(**arguments)
    except ClientError as error:
        _nothing(error, codes)


def _nothing(error: ClientError, codes: str) -> list[Any]:
    """No answer is an answer, for these errors alone."""
    if error.response["Error"]["Code"] not in codes.split():
        raise error
    return []


if __name__ == "__main__":
    sys.exit(main())
