# The serve image: trm serve and trm predict BUNDLE, without torch. Bundles are mounted, not built in.
#   docker build -t torchrec-models-serve .
#   docker run --rm -p 8000:8000 -v "$PWD/runs/run/clicks/bundle:/bundle:ro" torchrec-models-serve
# Python is Debian's own (3.11). docs/serving.md says how large the image is.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv gcc libc6-dev
WORKDIR /source
COPY requirements/serve.txt requirements/serve.txt
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --no-deps --requirement requirements/serve.txt
COPY pyproject.toml setup.py README.md ./
COPY torchrec_models torchrec_models
COPY pipelines pipelines
COPY launch launch
COPY configs configs
RUN /venv/bin/pip install --no-cache-dir --no-deps . && cd / && /venv/bin/python -m torchrec_models.pipelines.data.native \
    && /venv/bin/pip uninstall --yes setuptools pip

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /venv /venv
USER 65534:65534
ENV PATH=/venv/bin:$PATH
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["trm", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["model=/bundle"]
