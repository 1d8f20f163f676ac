# The worker, and with it the command pgrerank. Build from the project's folder:
#   docker build -f docker/worker.Dockerfile -t pgrerank-worker .
FROM python:3.12-slim-bookworm AS build
WORKDIR /project
COPY pyproject.toml README.md LICENSE ./
COPY pgrerank pgrerank
COPY sql sql
COPY native native
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# PyTorch's own index has builds without CUDA, which are a tenth of the size.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -c /constraints.txt "$(echo /wheels/pgrerank-*.whl)[observe,passages]"
# A fresh volume takes the folder's owner.
RUN useradd --create-home pgrerank && install -d -o pgrerank -g pgrerank /models
ENV HF_HOME=/models
VOLUME /models
USER pgrerank
CMD ["pgrerank", "worker"]
