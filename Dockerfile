# The image of every task: `make image`, then `--image NAME` or FLYTE_IMAGE. What is in it and why: docs/image.md.
#
# Flyte runs the code that `--copy all` uploads, not the copy in here, which is for `pyflyte register --copy none`: a
# change of the code needs no new image. Layers go from what seldom changes to the code, for those who do build one.

# Python's own image, because the lock files are made for 3.11 and no Ubuntu that CUDA's images are made of has a
# finished one. Both stages are the same Debian, so what is compiled in the first loads in the second.
ARG PYTHON_VERSION=3.11.15
# Major and minor are those of torch.version.cuda: DeepSpeed compiles with no other.
ARG CUDA_VERSION=13.0.2
# gpu, or cpu: the same libraries with a torch that has no CUDA, for machines without GPUs (docs/sandbox.md).
ARG TORCH=gpu

# ---- cuda: the compiler and the headers ------------------------------------------------------------------------------
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu22.04 AS cuda

# ---- base: what both builders begin with -----------------------------------------------------------------------------
FROM python:${PYTHON_VERSION}-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008 # Debian keeps one version of a package: a pin would break the build with its next security fix
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libaio-dev \
    && rm -rf /var/lib/apt/lists/*

ARG UV_VERSION=0.13.9
RUN pip install --no-cache-dir uv==${UV_VERSION} \
    && python -m venv --without-pip /opt/venv

# In the environment's own Python from here on.
ENV PATH=/opt/venv/bin:$PATH \
    VIRTUAL_ENV=/opt/venv \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never

WORKDIR /build
COPY pyproject.toml requirements.lock requirements-gpu.lock ./

# ---- builder-cpu: every library, in /opt/venv, with torch from PyTorch's own index ------------------------------------
FROM base AS builder-cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The version that the lock file names, with +cpu behind it. On ARM too: some images for Macs are built there.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --compile-bytecode --torch-backend cpu --requirements pyproject.toml \
        --constraints requirements.lock \
    && uv pip freeze | sed 's/+cpu$//' > /tmp/installed \
    && ! grep --line-regexp --fixed-strings --invert-match --file=requirements.lock /tmp/installed

# ---- builder-gpu: every library, and DeepSpeed's operators ------------------------------------------------------------
FROM base AS builder-gpu
COPY --from=cuda /usr/local/cuda-13.0 /usr/local/cuda

# Linking needs a libcuda, which comes with a driver; this one is a stub.
ENV CUDA_HOME=/usr/local/cuda \
    LIBRARY_PATH=/usr/local/cuda/lib64/stubs

# What the package depends on, without its tools for development; the lock files decide every version. The last line
# fails, and names the package, if anything else was installed. Compiled to bytecode: no task may write here.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --compile-bytecode --requirements pyproject.toml \
        --constraints requirements.lock --constraints requirements-gpu.lock \
    && uv pip freeze > /tmp/installed \
    && ! grep --line-regexp --fixed-strings --invert-match \
        --file=requirements.lock --file=requirements-gpu.lock /tmp/installed

# DeepSpeed again, with the operators that runs use: CPU Adam for offloaded optimizer states, utils, and with
# WITH_ASYNC_IO=1 asynchronous reading and writing for offload to NVMe. Compiled on first use instead, CPU Adam
# would cost each pod most of a minute of its GPUs' time.
#
#   DS_ACCELERATOR=cuda    A build has no GPU, and the operators would be marked as those of a CPU installation, which a
#                          GPU pod ignores without a word and compiles its own.
#   DS_BUILD_<OPERATOR>=1  Ahead of time. DS_BUILD_OPS=1 would mean all two dozen, most of them for inference.
#   DS_ENABLE_NINJA=1      Files in parallel.
#   TORCH_CUDA_ARCH_LIST   The GPUs that device code is for: compute capabilities, as "7.5;8.0;9.0" (T4, A100, H100).
#   DS_SKIP_CUDA_CHECK     Not set. It silences DeepSpeed's complaint that nvcc and torch are of different CUDA minors;
#                          here they are the same, and tests/test_image.py keeps it so.
#
# DeepSpeed compiles for the very CPU that it is built on: an image built on a machine with AVX-512 dies of an illegal
# instruction where there is none (https://github.com/deepspeedai/DeepSpeed/issues/1886). x86-64-v3, with AVX2, is what
# every machine of thriftune/planning/catalogue.yaml has. The last line looks for AVX-512 registers.
ARG CUDA_ARCHITECTURES=7.5
ARG WITH_ASYNC_IO=0
WORKDIR /build/deepspeed
RUN pip download --no-cache-dir --no-deps --no-binary deepspeed "$(grep ^deepspeed== ../requirements.lock)" \
    && tar --extract --strip-components=1 --file deepspeed-*.tar.gz \
    && sed --in-place 's/-march=native/-march=x86-64-v3/; s/-D__AVX512__/-D__AVX256__/' op_builder/builder.py \
    && DS_ACCELERATOR=cuda DS_BUILD_CPU_ADAM=1 DS_BUILD_UTILS=1 DS_BUILD_AIO=${WITH_ASYNC_IO} DS_ENABLE_NINJA=1 \
        TORCH_CUDA_ARCH_LIST="${CUDA_ARCHITECTURES}" \
        uv build --wheel --no-build-isolation --no-cache --python /opt/venv/bin/python --out-dir /build/wheels . \
    && uv pip install --compile-bytecode --no-cache --reinstall --no-deps --no-index --find-links=/build/wheels \
        deepspeed \
    && objdump --disassemble /opt/venv/lib/python3.11/site-packages/deepspeed/ops/adam/cpu_adam_op.*.so > /tmp/code \
    && ! grep --quiet zmm /tmp/code

# ---- code: this package, apart from its libraries --------------------------------------------------------------------
# hadolint ignore=DL3006 # not an image but one of the two stages above
FROM builder-${TORCH} AS builder
FROM builder AS code
WORKDIR /build
COPY README.md LICENSE ./
COPY thriftune ./thriftune
COPY tasks ./tasks
COPY workflows ./workflows
COPY pod_templates ./pod_templates
COPY deepspeed_configs ./deepspeed_configs
COPY configs ./configs
# configs is read as a folder beside workflows, as in a checkout and in an upload.
RUN uv pip install --compile-bytecode --no-cache --no-deps --no-build-isolation --target /code . \
    && cp -r configs /code/ \
    && rm -f /code/.lock

# ---- runtime ---------------------------------------------------------------------------------------------------------
FROM python:${PYTHON_VERSION}-slim-bookworm AS runtime

# CUDA comes with torch's wheels, the driver from the node, and what was compiled above finds its libraries in the
# process that has torch. gcc stays, and Python's headers are in this image: Triton compiles its launchers, and on a CPU
# node DeepSpeed its operators. libaio1 is what asynchronous IO loads.
# hadolint ignore=DL3008 # as above
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ libaio1 \
    && rm -rf /var/lib/apt/lists/*

# `pyflyte register` unpacks the code into /root unless told otherwise, and `pyflyte run` into the working directory.
# Both are /root here, so it belongs to the user that runs the tasks; it is also the home that caches go to.
RUN groupadd --gid 10001 thriftune \
    && useradd --uid 10001 --gid 10001 --home-dir /root --no-create-home --shell /bin/bash thriftune \
    && chown --recursive 10001:10001 /root \
    && chmod 755 /root

COPY --from=builder /opt/venv /opt/venv

# No PYTHONPATH: Flyte puts the uploaded code behind it, and the copy in here would be run. No NVIDIA_VISIBLE_DEVICES,
# which CUDA's images set to all: a CPU task on a GPU node would see its GPUs.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/root \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# As a number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001:10001
WORKDIR /root

# The operators load, in this stage and as this user, and a GPU pod will take them for its own.
ARG TORCH=gpu
RUN test "${TORCH}" = cpu || DS_ACCELERATOR=cuda python -c "from deepspeed.git_version_info import accelerator_name, installed_ops; \
    import deepspeed.ops.adam.cpu_adam_op, deepspeed.ops.utils_op; \
    assert accelerator_name == 'cuda' and installed_ops['cpu_adam'] and installed_ops['utils'], installed_ops"

COPY --from=code /code /opt/venv/lib/python3.11/site-packages

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="thriftune" \
      org.opencontainers.image.description="Fine-tune large language models on the GPUs you can actually get, as Flyte workflows" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
