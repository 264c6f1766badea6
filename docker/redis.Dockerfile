# Redis that takes its password from a secret file. It runs as the user of the official image, by number.
ARG BASE_IMAGE=redis:7.2
FROM ${BASE_IMAGE}
RUN mkdir -p /data && chown 999:999 /data
COPY docker/redis-entrypoint docker/redis-healthcheck /usr/local/bin/
USER 999:999
WORKDIR /data
ENTRYPOINT ["redis-entrypoint"]
