# The serve image: trm serve and trm predict BUNDLE, without torch. Bundles are mounted, not built in.
#   docker build -t torchrec-models-serve .
#   docker run --rm -p 8000:8000 -v "$PWD/runs/run/clicks/bundle:/bundle:ro" torchrec-models-serve
# What it installs is 372 MB (docs/serving.md), on top of the base image.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /source
COPY requirements/serve.txt requirements/serve.txt
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --no-deps --requirement requirements/serve.txt
COPY pyproject.toml setup.py README.md ./
COPY torchrec_models torchrec_models
COPY pipelines pipelines
COPY launch launch
COPY configs configs
RUN /venv/bin/pip install --no-cache-dir --no-deps . && cd / && /venv/bin/python -m torchrec_models.pipelines.data.native

FROM python:3.11-slim
COPY --from=build /venv /venv
USER 65534:65534
ENV PATH=/venv/bin:$PATH
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["trm", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["model=/bundle"]
