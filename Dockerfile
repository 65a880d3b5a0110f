# The function as a container image for AWS Lambda, with the demo model.
#
#   docker build -t gpt2-lambda .
#   docker run --rm -p 9000:8080 gpt2-lambda            accepts raw events, see README.md
#   docker run --rm -p 8080:8080 gpt2-lambda serve      the local server
#
# BASE    an image with Python 3.11 or newer, glibc 2.28 or newer; with pip, and apt-get or dnf, for the
#         build stage. AWS's own (public.ecr.aws/lambda/python:3.13) is one.
# MODEL   a packed model directory within the build context that goes into the image, where a volume
#         would be mounted; default none. With SnapStart it is then part of the snapshot.
ARG BASE=python:3.13-slim-bookworm

# ---- dependencies, build: what may need pip, a compiler and a shell; only /out is copied to the final image
FROM ${BASE} AS dependencies

# For dependencies without a wheel, and for the kernels, which also need Python's headers.
RUN headers=$(python3 -c 'import os, sysconfig; print(os.path.exists(sysconfig.get_path("include") + "/Python.h"))'); \
    if command -v cc && [ "$headers" = True ]; then exit 0; fi; \
    if command -v dnf; then dnf install -y gcc; else \
        [ "$headers" = True ] || more=python3-dev; \
        apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev $more; \
    fi

# Dependencies change less often than code: their layer comes first, here and below.
COPY requirements/image.txt /tmp/image.txt
RUN python3 -m pip install --no-cache-dir --no-compile --require-hashes --no-deps \
        --target /out/dependencies/var/task -r /tmp/image.txt

FROM dependencies AS build
COPY scripts/slim_image.py /tmp/slim_image.py
RUN python3 /tmp/slim_image.py /out/dependencies

# Compiled for one architecture: in a separate layer, so that the code's layer is the same for all.
COPY pyproject.toml /tmp/kernels/
COPY scripts/build_kernels.py /tmp/kernels/scripts/
COPY gpt2core/kernels/_kernels.c /out/kernels/var/task/gpt2core/kernels/
RUN python3 /tmp/kernels/scripts/build_kernels.py /out/kernels/var/task && \
    python3 /tmp/slim_image.py /out/kernels

COPY bootstrap.py /out/code/var/task/
COPY gpt2core /out/code/var/task/gpt2core
COPY handler /out/code/var/task/handler
COPY events /out/code/var/task/events
COPY models/demo /tmp/demo
RUN PYTHONPATH=/out/dependencies/var/task:/out/code/var/task \
        python3 -m gpt2core pack /tmp/demo /out/code/var/task/models/demo
ARG MODEL=models/none
COPY ${MODEL} /out/code/mnt/gpt2
RUN python3 /tmp/slim_image.py /out/code

# ---- function: for Lambda, and for `sam local`, which adds its emulator in a RUN of its own
FROM ${BASE} AS function
COPY --from=build /out/dependencies /
COPY --from=build /out/kernels /
COPY --from=build /out/code /
WORKDIR /var/task
ENV HOST=0.0.0.0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG BASE
LABEL org.opencontainers.image.title="gpt2-lambda" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.description="GPT-2 on AWS Lambda with the shortest cold start" \
      org.opencontainers.image.licenses="MIT" \
      com.amazonaws.lambda.feature.snapstart="Allow"
# -S: all packages are next to the script, so there is no site-packages to look for.
ENTRYPOINT ["python3", "-S", "bootstrap.py"]

# ---- the default: as any other container, without root
FROM function
USER 65534:65534
EXPOSE 8080
