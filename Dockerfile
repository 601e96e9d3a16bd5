# The image of every task: `docker build -t thriftune .`, then `pyflyte run --remote --image thriftune ...`.
#
# Flyte runs the code that --copy uploads, not the copy in here; that one is for `pyflyte register --copy none`.
# torch brings its own CUDA libraries, so the image only has to match the driver.

ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG RUNTIME_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

# ---- builder: the virtual environment, with every version from the lock file --------------------------------------
FROM ${CUDA_IMAGE} AS builder

ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# Before the code, so that a change of the code leaves this layer alone. DeepSpeed is installed without its operators.
WORKDIR /build
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip pip install -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY thriftune ./thriftune
COPY tasks ./tasks
COPY workflows ./workflows
COPY pod_templates ./pod_templates
COPY deepspeed_configs ./deepspeed_configs
# setuptools is in the lock file.
RUN pip install --no-deps --no-build-isolation .

# ---- runtime --------------------------------------------------------------------------------------------------------
FROM ${RUNTIME_IMAGE}

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="thriftune" \
      org.opencontainers.image.description="Fine-tune large language models on the GPUs you can actually get, as Flyte workflows" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# gcc and Python's headers stay, and ninja is in the virtual environment: DeepSpeed compiles its CPU Adam when a run
# with offload first needs it, and Triton compiles its launchers.
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ gcc python3 python3-dev \
    && rm -rf /var/lib/apt/lists/*

COPY --from=builder /opt/venv /opt/venv

# `pyflyte register` unpacks the code into /root unless told otherwise, and `pyflyte run` into the working directory.
# Both are /root here, so it belongs to the user that runs the tasks; it is also the home that compiled operators and
# caches go to.
RUN groupadd --gid 10001 thriftune \
    && useradd --uid 10001 --gid 10001 --home-dir /root --no-create-home --shell /bin/bash thriftune \
    && chown --recursive 10001:10001 /root \
    && chmod 755 /root

ENV PATH=/opt/venv/bin:$PATH \
    HOME=/root \
    PYTHONUNBUFFERED=1
# As a number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001:10001
WORKDIR /root
