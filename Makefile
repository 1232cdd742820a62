# Everything a person runs here. `make test` and `make demo` install what they need by themselves: they expect
# git, make, a C compiler, rustup, Go and apt, and as many of Node and Python as are there already.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

export RUST_BACKTRACE := 0
CARGO_DENY := 0.20.2
# The release that stories run on, and the oldest that the broker works with, for KAFKA_RELEASE=3.6.2 make e2e.
KAFKAS := 4.1.2 3.6.2
KUBECONFORM := 0.7.0
# Whose kind ServiceMonitor is.
PROMETHEUS_OPERATOR := github.com/prometheus-operator/prometheus-operator@v0.85.0
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
DEV := $(patsubst $(CURDIR)/%,%,$(TARGET))/debug
TOOLS := $(CURDIR)/.tools
say = @echo "==> $(1)"

.PHONY: help soak test fmt lint deny unit e2e build before demo bench rumqttd-stops fuzz crds images image-files tools mosquitto promtool

help:
	@echo "make test   everything a change must pass: format, lints, licences, all tests"
	@echo "make demo   a small metering fleet on one machine, in seconds"
	@echo "make bench  CPU time a message and memory a connection, beside other brokers"
	@echo "make rumqttd-stops  does to rumqttd what README says stops it"
	@echo "make soak   the simulation with other seeds each time, and then faults of three real nodes, until something breaks or SOAK_MINUTES (60) are over, for each"
	@echo "make before the broker of the commit before this one, which stories on several nodes begin with"
	@echo "make fuzz   the fuzz targets, FUZZ_SECONDS (300) each, FUZZ_TARGETS to choose"
	@echo "make crds   writes crds/, its copy in the chart and JSON schemas from the resource types"
	@echo "make images builds the images of the broker and the operator, optimised; REGISTRY=host/path/ goes before their names"
	@echo "make fmt    formats the code"

test: lint unit e2e deny
	$(call say,all passed)

fmt:
	cargo fmt --all

lint:
	$(call say,format)
	@cargo fmt --all --check
	$(call say,lints)
	@cargo clippy --quiet --workspace --all-targets -- -D warnings

# Those of the workspaces beside the main one, too.
MANIFESTS := Cargo.toml broker/proto/differential/Cargo.toml broker/proto/fuzz/Cargo.toml
deny: $(TOOLS)/bin/cargo-deny
	$(call say,licences and sources of the dependencies)
	@for manifest in $(MANIFESTS); do $(TOOLS)/bin/cargo-deny --log-level error --manifest-path $$manifest \
		--config deny.toml check bans licenses sources || { echo "that was $$manifest" >&2; exit 1; }; done

# Cargo compiles a dependency anew for each choice of packages, as they want other features of it. So all is chosen each time,
# and what is run is told by the names of tests; and all is compiled once, with what the tests want.
tests = $(addprefix --test ,$(notdir $(patsubst %/main,%,$(basename $(wildcard $(1:%=%/*.rs) $(1:%=%/*/main.rs))))))
unit: build
	$(call say,unit tests)
	@SIM_SEEDS=1000 cargo test --quiet --workspace --lib --bins $(call tests,broker/proto/tests operator/api/tests operator/tests)
	@cargo test --quiet --manifest-path broker/proto/differential/Cargo.toml --target-dir $(TARGET)/differential

SOAK_MINUTES ?= 60
soak: build $(TOOLS)/paho $(TOOLS)/kafka-$(firstword $(KAFKAS))
	$(call say,the simulation)
	@SOAK_MINUTES=$(SOAK_MINUTES) cargo test --quiet --workspace --bin mqtt-broker the_rules_hold -- --nocapture
	$(call say,three nodes$(comma) Kafka and 410 devices)
	@SOAK_MINUTES=$(SOAK_MINUTES) cargo test --quiet --workspace --test sessions_survive whatever_befalls -- --nocapture

# The broker that the commit before made: stories replace its nodes by those of this one. What both depend on is compiled once; what
# is of this workspace has the same name in both, so it gets a folder of its own.
BEFORE := $(DEV)/before
before: build
	@git rev-parse --verify --quiet HEAD~1 >/dev/null || git fetch --quiet --deepen 1 || true; \
	commit=$$(git rev-parse --verify --quiet HEAD~1) || { echo "the commit before is needed: clone with its history" >&2; exit 1; }; \
	if [ "$$(cat $(BEFORE)/commit 2>/dev/null)" != $$commit ]; then \
		echo "==> the broker of the commit before"; rm -rf $(BEFORE); mkdir -p $(BEFORE)/source $(BEFORE)/target/debug; \
		git archive $$commit | tar --extract --touch --directory $(BEFORE)/source; \
		tar --create --directory $(DEV) --exclude '*mqtt*' .fingerprint build deps | tar --extract --directory $(BEFORE)/target/debug; \
		cargo build --quiet --workspace --bin mqtt-broker --manifest-path $(BEFORE)/source/Cargo.toml --target-dir $(BEFORE)/target; \
		mv $(BEFORE)/target/debug/mqtt-broker $(BEFORE)/mqtt-broker; rm -rf $(BEFORE)/target $(BEFORE)/source; \
		echo $$commit > $(BEFORE)/commit; fi

e2e: tools build before
	$(call say,user stories)
	@cargo test --quiet --workspace --no-fail-fast $(call tests,e2e/tests)

build:
	$(call say,all that tests run)
	@cargo build --quiet --workspace --all-targets

demo: mosquitto
	$(call say,the broker)
	@cargo build --quiet -p mqtt-broker
	@MQTT_BROKER_BIN=$(DEV)/mqtt-broker e2e/demo.sh

# Arguments for the benchmark, such as BENCH=--quick.
BENCH ?=
bench: mosquitto $(TOOLS)/bin/rumqttd $(TOOLS)/kafka-$(firstword $(KAFKAS))
	$(call say,the broker and the load generator$(comma) optimised)
	@cargo build --quiet --release -p mqtt-broker -p mqtt-e2e
	@MQTT_BROKER=$(TARGET)/release/mqtt-broker RUMQTTD=$(TOOLS)/bin/rumqttd $(TARGET)/release/mqtt-bench $(BENCH)

# What README says of it is true as long as this passes.
rumqttd-stops: $(TOOLS)/bin/rumqttd
	$(call say,what stops rumqttd)
	@cargo run --quiet -p mqtt-e2e --example rumqttd_stops $<

# libFuzzer takes its coverage from what any compiler of ours can do; a sanitizer, which needs a nightly one, would find
# nothing more, as mqtt-proto has no unsafe code. What is found new is kept in target/fuzz, what breaks is said.
FUZZ_SECONDS ?= 300
FUZZ_TARGETS ?= codec session trie acl records
FUZZ_HOST := $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
fuzz:
	$(call say,fuzz targets: $(FUZZ_TARGETS))
	@cd broker/proto/fuzz && RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --quiet --release --target $(FUZZ_HOST) --target-dir $(TARGET)/fuzz
	@for name in $(FUZZ_TARGETS); do mkdir -p $(TARGET)/fuzz/found/$$name; echo "==> $$name: $(FUZZ_SECONDS) s"; \
		$(TARGET)/fuzz/$(FUZZ_HOST)/release/$$name -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -verbosity=0 \
			-artifact_prefix=$(TARGET)/fuzz/$$name- $(TARGET)/fuzz/found/$$name broker/proto/fuzz/corpus/$$name \
			|| { echo "$$name failed; its input is above" >&2; exit 1; }; done

crds:
	$(call say,crds/)
	@cargo run --quiet -p mqtt-operator-api --example crds

# DOCKER may be any builder that takes the same words, such as `podman`.
DOCKER ?= docker
REGISTRY ?=
BASE ?= debian:bookworm-slim
images: image-files
	$(call say,images)
	@for name in broker operator; do $(DOCKER) build --file Dockerfile --target $$name --build-arg BASE=$(BASE) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
		--tag $(REGISTRY)mqtt-$$name:$(VERSION) $(TARGET)/images; done

# What the images are made of, alone in a folder. Of the CAs, those that Mozilla trusts, not those of this machine.
image-files:
	$(call say,the broker and the operator$(comma) optimised)
	@cargo build --quiet --release -p mqtt-broker -p mqtt-operator
	@mkdir -p $(TARGET)/images
	@install -m 755 $(TARGET)/release/mqtt-broker $(TARGET)/release/mqtt-operator $(TARGET)/images
	@cat /usr/share/ca-certificates/mozilla/*.crt > $(TARGET)/images/ca-certificates.crt

# The clients and the Kafka that the stories run, and the brokers the benchmark compares with. A second run finds them
# there.
tools: mosquitto promtool $(TOOLS)/paho $(TOOLS)/paho-java $(TOOLS)/bin/drive-paho-go $(TOOLS)/mqttjs $(KAFKAS:%=$(TOOLS)/kafka-%) \
	$(TOOLS)/kubernetes/made $(TOOLS)/bin/kubeconform $(TOOLS)/servicemonitors.yaml

mosquitto:
	@if ! { command -v mosquitto && command -v mosquitto_pub; } >/dev/null; then \
		echo "==> mosquitto and its command-line clients"; e2e/apt-install mosquitto mosquitto-clients; fi

promtool:
	@if ! command -v promtool >/dev/null; then echo "==> Prometheus, which judges the alerts"; e2e/apt-install prometheus; fi

$(TOOLS)/paho: e2e/clients/requirements.txt
	$(call say,Eclipse Paho for Python)
	@mkdir -p $(TOOLS)
	@if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then e2e/apt-install python3 python3-venv; fi
	@python3 -m venv --clear $(TOOLS)/venv
	@$(TOOLS)/venv/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(TOOLS)/paho-java: e2e/clients/java/pom.xml e2e/clients/java/DrivePaho.java
	$(call say,Eclipse Paho for Java)
	@if ! { command -v mvn && command -v javac; } >/dev/null; then e2e/apt-install maven default-jdk-headless; fi
	@rm -rf $@ $@.part
	@said=$$(mvn -q -B -f $< dependency:copy-dependencies -DoutputDirectory=$@.part 2>&1) \
		|| { echo "$$said" >&2; exit 1; }
	@javac -cp '$@.part/*' -d $@.part e2e/clients/java/DrivePaho.java
	@mv $@.part $@
	@touch $@

$(TOOLS)/bin/drive-paho-go: $(wildcard e2e/clients/go/*)
	$(call say,Eclipse Paho for Go)
	@mkdir -p $(@D)
	@cd e2e/clients/go && go build -o $@ . \
		|| { echo "the driver could not be built: is Go 1.24 there, and its module proxy within reach?" >&2; exit 1; }

$(TOOLS)/mqttjs: e2e/clients/package.json e2e/clients/package-lock.json
	$(call say,MQTT.js)
	@mkdir -p $(TOOLS)
	@if ! command -v npm >/dev/null; then e2e/apt-install nodejs npm; fi
	@npm ci --silent --no-audit --no-fund --prefix e2e/clients
	@touch $@

# A folder with the jars of a release. Made beside its place first, so that half of it is never taken for all.
$(KAFKAS:%=$(TOOLS)/kafka-%): $(TOOLS)/kafka-%: e2e/kafka/pom.xml
	$(call say,Apache Kafka $*)
	@if ! { command -v mvn && command -v javac; } >/dev/null; then e2e/apt-install maven default-jdk-headless; fi
	@rm -rf $@ $@.part
	@said=$$(mvn -q -B -f $< dependency:copy-dependencies -Dkafka=$* -DoutputDirectory=$@.part 2>&1) \
		|| { echo "$$said" >&2; exit 1; }
	@mv $@.part $@
	@touch $@

CLUSTER_PACKAGES := buildah containerd containernetworking-plugins debootstrap iproute2 iptables openssl runc
$(TOOLS)/kubernetes/made: e2e/kubernetes/go.mod e2e/kubernetes/tools
	$(call say,a Kubernetes of one node)
	@if ! dpkg -s $(CLUSTER_PACKAGES) >/dev/null 2>&1; then e2e/apt-install $(CLUSTER_PACKAGES); fi
	@e2e/kubernetes/tools $(TOOLS)/kubernetes
	@touch $@

$(TOOLS)/bin/kubeconform:
	$(call say,kubeconform $(KUBECONFORM))
	@GOBIN=$(TOOLS)/bin go install github.com/yannh/kubeconform/cmd/kubeconform@v$(KUBECONFORM) 2>/dev/null \
		|| { echo "kubeconform could not be built: is Go 1.24 there, and its module proxy within reach?" >&2; exit 1; }

# The definition of a kind that is not ours, as its own authors publish it.
$(TOOLS)/servicemonitors.yaml:
	$(call say,the kind ServiceMonitor of $(PROMETHEUS_OPERATOR))
	@mkdir -p $(TOOLS)
	@folder=$$(cd / && go mod download -json $(PROMETHEUS_OPERATOR) | sed -n 's/^.*"Dir": "\(.*\)".*/\1/p'); \
		install -m 644 "$$folder/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml" $@

# Unoptimised: it is built in half the time, and what it checks here takes it a second either way.
$(TOOLS)/bin/cargo-deny:
	$(call say,cargo-deny $(CARGO_DENY): takes some minutes the first time)
	@cargo install cargo-deny --version $(CARGO_DENY) --locked --debug --quiet --root $(TOOLS)

# Not --locked: what its lock file names no longer compiles.
$(TOOLS)/bin/rumqttd:
	$(call say,rumqttd$(comma) to compare with: takes some minutes the first time)
	@cargo install rumqttd --version 0.20.0 --quiet --root $(TOOLS)

comma := ,
