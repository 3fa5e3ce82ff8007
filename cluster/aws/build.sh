#!/usr/bin/env bash
# Build the image for CPU and for CUDA nodes and push both to a registry of your account:
#     cluster/aws/build.sh ACCOUNT.dkr.ecr.REGION.amazonaws.com
set -euo pipefail
registry=${1:?usage: build.sh REGISTRY, as setup.py printed it}
region=$(cut -d. -f4 <<<"$registry")
cd "$(dirname "$0")/../.."
docker build -f cluster/Dockerfile -t "$registry/dtg:cpu" .
docker build -f cluster/Dockerfile -t "$registry/dtg:cuda" --build-arg TORCH_INDEX=https://pypi.org/simple .
aws ecr get-login-password --region "$region" | docker login --username AWS --password-stdin "$registry"
docker push "$registry/dtg:cpu"
docker push "$registry/dtg:cuda"
