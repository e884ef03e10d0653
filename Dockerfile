# One image a service: it installs one extra of pyproject.toml, and what an S3 store takes, and runs one module.
#
#     docker build --target trainer .
#
# PyTorch brings CUDA with it, 3 GB. Without:
#
#     docker build --target trainer --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
#
# So that model cards name the commit: --build-arg GENDERLINE_COMMIT=$(git rev-parse HEAD).

FROM python:3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7 AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# ONNX Runtime reads it as it loads, and then sends nothing to its maker.
ENV ORT_DISABLE_TELEMETRY=1
RUN useradd --uid 10001 --create-home genderline && install --directory --owner genderline --group genderline /data
WORKDIR /app
# The dependencies alone first: a change of the code does not install them again.
COPY pyproject.toml README.md requirements.lock requirements-gpu.lock ./
# Exactly the versions of the lock files. pip takes no file with hashes beside a package of our own, and no extras in
# constraints: here are names, versions and markers.
RUN for lock in requirements requirements-gpu; do \
        sed -nE 's/^([a-z0-9-]+)(\[[^]]*\])?(==[^\\]*[^ \\]) *\\$/\1\3/p' $lock.lock > $lock.txt; \
    done

FROM base AS trainer
# Read by pip from the environment.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --constraint requirements.txt ".[trainer,s3,heic]"
COPY shared shared
COPY trainer trainer
ARG GENDERLINE_COMMIT
ENV GENDERLINE_COMMIT=$GENDERLINE_COMMIT
USER genderline
EXPOSE 9101
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9101/healthz', timeout=4)"]
CMD ["python", "-m", "trainer"]

FROM base AS inference
RUN pip install --constraint requirements.txt ".[inference,s3,heic]"
COPY shared shared
COPY inference inference
USER genderline
EXPOSE 9102
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9102/healthz', timeout=4)"]
CMD ["python", "-m", "inference"]

FROM base AS inference-gpu
RUN pip install --constraint requirements-gpu.txt ".[inference-gpu,s3,heic]"
COPY shared shared
COPY inference inference
USER genderline
EXPOSE 9102
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9102/healthz', timeout=4)"]
CMD ["python", "-m", "inference"]

FROM base AS dashboard
RUN pip install --constraint requirements.txt ".[dashboard,s3,heic]"
COPY shared shared
COPY dashboard dashboard
USER genderline
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
CMD ["python", "-m", "dashboard"]
