# The function as a container image for AWS Lambda, with the demo model.
#
#   docker build -t gpt2-lambda .
#   docker run --rm --entrypoint python gpt2-lambda -m handler invoke --text events/api-generate.json
#
# BASE: any image with Python 3.11 or newer and pip, of glibc 2.28 or newer.
ARG BASE=python:3.13-slim-bookworm
FROM ${BASE}

WORKDIR /var/task

# Dependencies change less often than code, so they stand in a layer before it. Bytecode is
# compiled here because nothing can be written in the running function.
COPY requirements/image.txt requirements/image.txt
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/image.txt

COPY models models
COPY events events
COPY gpt2core gpt2core
COPY handler handler
RUN /opt/venv/bin/python -m compileall -q gpt2core handler

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

# No USER: Lambda brings its own, and `sam local` adds its emulator to this image in a RUN of its own,
# which fails for any user but root. Elsewhere: docker run --user 65534 --read-only --tmpfs /tmp.
ENTRYPOINT ["python", "-m", "awslambdaric"]
CMD ["handler.app.lambda_handler"]
