"""cluster/aws: Ray's own code reads the plan, and a local AWS takes what setup.py asks for."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

AWS = Path(__file__).parents[2] / "cluster" / "aws"
REGION = "us-east-1"
ADDRESS = "192.0.2.7/32"


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    """cluster/aws/setup.py."""
    specification = importlib.util.spec_from_file_location("aws_setup", AWS / "setup.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(s3: Callable[[], str], setup: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An account of a local AWS after setup.py: session, study, and the plan it wrote."""
    import boto3

    folder, session = tmp_path_factory.mktemp("aws"), boto3.Session(region_name=REGION)
    patch = pytest.MonkeyPatch()
    patch.setattr(setup, "TOKEN", folder / "token" / "token")
    image = session.client("ec2").describe_images()["Images"][0]["ImageId"]
    study, plan = f"{s3()}/ukb", folder / "mine" / "cluster.yaml"
    arguments = [f"--region={REGION}", f"--study={study}", "--images=s3://images/bulk", f"--ssh-from={ADDRESS}"]
    arguments += [f"--image-id={image}", f"--out={plan}"]
    for _ in range(2):  # the second time finds everything there
        assert setup.main(arguments) == 0
    patch.undo()
    return {"session": session, "study": study, "plan": plan, "folder": folder, "arguments": arguments}


def plan_of(place: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(place["plan"].read_text())
    return loaded


def test_ray_finds_the_plan_valid_by_its_schema_and_its_own_checks(place: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    assert "${" not in json.dumps(plan_of(place))
    config = prepare_config(plan_of(place))
    validate_config(config)
    broken = copy.deepcopy(config)
    broken["provider"]["security_group"] = {"Ports": [22]}
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(broken)


def test_ray_knows_what_each_kind_of_node_has(place: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    kinds = AWSNodeProvider.fillout_available_node_types_resources(plan_of(place))["available_node_types"]
    has = {name: (kind["resources"]["CPU"], kind["resources"].get("GPU", 0)) for name, kind in kinds.items()}
    assert has == {"head": (0, 0), "cpu": (16, 0), "gpu": (0, 1)}


def test_ray_starts_nodes_of_each_kind_as_the_plan_says(place: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    plan = plan_of(place)
    key = place["folder"] / "key.pem"
    key.touch(mode=0o600)
    plan["auth"]["ssh_private_key"] = str(key)
    for kind in plan["available_node_types"].values():
        kind["node_config"]["KeyName"] = "mine"
    place["session"].client("ec2").create_key_pair(KeyName="mine")
    config = bootstrap_aws(prepare_config(plan))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    ec2 = place["session"].client("ec2")
    for name, kind in config["available_node_types"].items():
        tags = {"ray-node-type": "head" if name == "head" else "worker", "ray-user-node-type": name}
        started = provider.create_node(kind["node_config"], tags, 1)
        node = ec2.describe_instances(InstanceIds=list(started))["Reservations"][0]["Instances"][0]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["InstanceType"] == kind["node_config"]["InstanceType"]
        assert node.get("InstanceLifecycle") == (None if name == "head" else "spot")
        assert node["IamInstanceProfile"]["Arn"].endswith("dtg-head" if name == "head" else "dtg-worker")
        volumes = [disk["Ebs"]["VolumeId"] for disk in node["BlockDeviceMappings"]]
        assert all(volume["Encrypted"] for volume in ec2.describe_volumes(VolumeIds=volumes)["Volumes"])
        groups = [group["GroupId"] for group in node["SecurityGroups"]]
        assert_closed(ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"])
        provider.terminate_node(next(iter(started)))


def assert_closed(groups: list[dict[str, Any]]) -> None:
    """Ssh from one address and traffic of the group itself, nothing else."""
    for group in groups:
        for rule in group["IpPermissions"]:
            assert not rule.get("Ipv6Ranges")
            if rule["IpProtocol"] == "-1":
                assert not rule.get("IpRanges")
                assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
            else:
                assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (22, 22, [{"CidrIp": ADDRESS}])


def test_the_network_is_opened_to_one_address_and_never_to_all(setup: ModuleType, place: dict[str, Any]) -> None:
    groups = place["session"].client("ec2").describe_security_groups(GroupNames=["dtg"])["SecurityGroups"]
    assert len(groups) == 1
    assert_closed(groups)
    for wrong in (None, "0.0.0.0/0", "::/0"):
        with pytest.raises(SystemExit, match="expected your own address"):
            setup.security_group(place["session"], None, wrong)


def statements(place: dict[str, Any], role: str) -> list[dict[str, Any]]:
    iam = place["session"].client("iam")
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    documents = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    return [statement for document in documents for statement in document["Statement"]]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_roles_name_what_they_may_touch_wherever_aws_lets_them(place: dict[str, Any]) -> None:
    for role in ("dtg-head", "dtg-worker"):
        for statement in statements(place, role):
            actions = listed(statement["Action"])
            assert not any("*" in action for action in actions)
            if "*" in listed(statement["Resource"]):  # AWS knows no resource for these
                assert all(
                    action.startswith("ec2:Describe") or action == "ecr:GetAuthorizationToken" for action in actions
                )


def test_workers_may_use_the_data_and_nothing_else(place: dict[str, Any]) -> None:
    actions = {action for statement in statements(place, "dtg-worker") for action in listed(statement["Action"])}
    assert {action.split(":")[0] for action in actions} == {"s3", "ecr"}
    write = [statement for statement in statements(place, "dtg-worker") if "s3:PutObject" in statement["Action"]]
    assert [statement["Resource"] for statement in write] == [f"arn:aws:s3:::{place['study'].removeprefix('s3://')}/*"]


def test_the_head_gives_nodes_the_role_of_workers_and_no_other(place: dict[str, Any]) -> None:
    passed = [statement for statement in statements(place, "dtg-head") if statement["Action"] == "iam:PassRole"]
    assert [statement["Resource"].split(":")[-1] for statement in passed] == ["role/dtg-worker"]


def test_the_bucket_keeps_its_own_rules_and_gets_ours_once(setup: ModuleType, place: dict[str, Any]) -> None:
    s3, bucket = place["session"].client("s3"), place["study"].removeprefix("s3://").split("/")[0]
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    theirs = {**policy["Statement"][0], "Sid": "Theirs"}
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({**policy, "Statement": [*policy["Statement"], theirs]}))
    setup.bucket(place["session"], {"STUDY_BUCKET": bucket, "STUDY_PREFIX": "ukb"})
    names = [statement["Sid"] for statement in json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]]
    assert names == ["OnlyEncryptedConnections", "OnlyEncryptedObjects", "Theirs"]
    rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] for rule in rules] == [7]
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())


def test_the_token_is_a_file_of_its_owner_and_stays_when_it_is_there(place: dict[str, Any], setup: ModuleType) -> None:
    path = place["folder"] / "token" / "token"
    before = path.read_text()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert setup.token(path).read_text() == before
    assert len(before) == 64
    assert before not in place["plan"].read_text()


def test_everything_can_be_taken_away_but_the_data(place: dict[str, Any], setup: ModuleType) -> None:
    assert setup.main([f"--region={REGION}", "--remove"]) == 0
    assert not [
        role for role in place["session"].client("iam").list_roles()["Roles"] if role["RoleName"] in setup.POLICIES
    ]
    assert place["session"].client("ecr").describe_repositories()["repositories"] == []
    assert place["session"].client("s3").get_bucket_policy(Bucket=place["study"].removeprefix("s3://").split("/")[0])
    assert setup.main([f"--region={REGION}", "--remove"]) == 0
