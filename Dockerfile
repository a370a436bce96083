# The agent. BASE: Debian or Ubuntu, or any image that has bash, Python from 3.11 on and BCC's Python part (python3-bpfcc);
# what it has is not installed again. docker-compose.yml says what its container has to be given.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

WORKDIR /opt/netprofiler
COPY scripts/debian.sh scripts/debian-packages-run.txt requirements.lock ./
RUN bash debian.sh debian-packages-run.txt \
    && { [ -d lib/h11 ] || { \
        { python3 -m pip --version >/dev/null 2>&1 || { apt-get update -q && apt-get install -qy --no-install-recommends python3-pip; }; } \
        && python3 -m pip install --no-cache-dir --require-hashes --target lib -r requirements.lock; }; } \
    && rm -rf /var/lib/apt/lists/*
COPY netprofiler lib/netprofiler
COPY bpf lib/bpf

# What was compiled for this kernel is kept here: with a volume, for the next container too.
VOLUME /var/cache/netprofiler
ENV PYTHONPATH=/opt/netprofiler/lib PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "netprofiler"]
