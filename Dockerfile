# The toolkit on PyTorch's own image for CUDA.
#
#   docker build -t modernn .
#   docker run --gpus all --ipc=host -v "$PWD:/work" modernn toolkit train --config configs/demo.yaml
#
# For a CPU alone: docker build --build-arg BASE=python:3.11-slim -t modernn .
ARG BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-devel
FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY . /opt/modernn
# PyTorch stays the image's own where it has one.
RUN python -m pip install "/opt/modernn[radar,video,grib,cf]" && toolkit --version
WORKDIR /work
CMD ["toolkit", "--help"]
