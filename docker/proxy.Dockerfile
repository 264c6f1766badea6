# nginx in front of the service: TLS, limits and time-outs (docs/scale.md).
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light curl && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home quickstudy
COPY docker/proxy.conf /etc/quickstudy/proxy.conf
COPY docker/proxy-entrypoint /usr/local/bin/
USER 10001
EXPOSE 8443
ENTRYPOINT ["proxy-entrypoint"]
