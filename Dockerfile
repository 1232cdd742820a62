# The images of the broker and of the operator: one binary each on Debian, run as a user without rights.
#
#   make images
#
# Nothing is compiled or fetched in here: the build context is a folder of finished files (`make image-files`), so that
# every builder makes the same image of them, one without a network included. They run on the release of Debian that
# they were built on, or a later one: give another BASE where that is not bookworm.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS broker
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mqtt-broker" \
      org.opencontainers.image.description="MQTT broker that keeps what it promises in Kafka" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The CAs that a connection to Kafka trusts when spec.kafka.tls names none.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY mqtt-broker /usr/local/bin/mqtt-broker
USER 65532:65532
EXPOSE 1883 8085 9090
ENTRYPOINT ["mqtt-broker"]

FROM ${BASE} AS operator
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mqtt-operator" \
      org.opencontainers.image.description="Runs MqttInstances on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY mqtt-operator /usr/local/bin/mqtt-operator
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["mqtt-operator"]
