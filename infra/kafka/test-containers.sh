#!/usr/bin/env bash
# Proves the Docker path on a real engine: the tests of the broker, with the broker in a container.
#
#   infra/kafka/test-containers.sh PYTHON
#
# An engine that answers and has the image, or can pull it, is used as it is. Where there is none (a build machine without
# a registry), this script brings its own, and needs root: dockerd with a data root, socket and pid file of its own, and an
# image of the layout of apache/kafka made from debootstrap's Debian, its Java, and the jars that pom.xml names. Both are gone
# when it ends. LAPSE_OWN_ENGINE=1 brings them in any case.
set -euo pipefail

python="${1:?usage: test-containers.sh PYTHON}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
image="$("$python" -c 'from lapse.pipeline.broker.properties import IMAGE; print(IMAGE)')"
# Debian's release whose Java is 17.
suite=bookworm
work=""
engine_pid=""
bridge_is_ours=""

say() { echo "test-containers: $*" >&2; }

clean() {
  local code=$?
  if [[ -n "$engine_pid" ]] && kill -TERM "$engine_pid" 2>/dev/null; then
    say "stopping the engine"
    wait "$engine_pid" || true
  fi
  if [[ -n "$bridge_is_ours" ]]; then
    ip link delete docker0 2>/dev/null || true
  fi
  # A mount that stayed would let rm reach into it.
  if [[ -n "$work" ]] && ! grep -q " $work/" /proc/mounts; then
    rm -rf "$work"
  fi
  exit "$code"
}
trap clean EXIT
trap 'exit 130' INT TERM

engine_answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

image_is_to_be_had() {
  docker image inspect "$image" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$image" >/dev/null 2>&1
}

need() { # need COMMAND PACKAGE
  command -v "$1" >/dev/null && return
  say "installing $2"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

start_engine() {
  export DOCKER_HOST="unix://$work/docker.sock"
  [[ -e /sys/class/net/docker0 ]] || bridge_is_ours=1
  # Ports are published by docker-proxy, and nothing in a container calls out: the machine's packet filter stays untouched.
  dockerd --host "$DOCKER_HOST" --pidfile "$work/dockerd.pid" --data-root "$work/data" --exec-root "$work/exec" \
    --iptables=false --ip6tables=false --ip-masq=false --ip-forward=false \
    >"$work/dockerd.log" 2>&1 &
  engine_pid=$!
  for _ in $(seq 300); do
    engine_answers && return
    kill -0 "$engine_pid" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$work/dockerd.log" >&2
  say "the engine did not start"
  return 1
}

build_image() {
  local root="$work/root"
  say "making $image from Debian $suite"
  debootstrap --variant=minbase --include=openjdk-17-jre-headless "$suite" "$root" >"$work/debootstrap.log" 2>&1 \
    || { tail -n 20 "$work/debootstrap.log" >&2; return 1; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  install -d "$root"/opt/kafka/{libs,config} "$root"/etc/kafka/docker "$root"/mnt/shared/config "$root"/var/lib/kafka/data
  cp "$("$python" -c 'import sys; from lapse.pipeline.broker.maven import jars
print(jars(lambda told: print(told, file=sys.stderr)))')"/*.jar "$root"/opt/kafka/libs/
  install -m 755 "$here/image/run" "$root"/etc/kafka/docker/run
  install -m 644 "$here/image/log4j2.yaml" "$root"/etc/kafka/docker/log4j2.yaml
  cp "$root"/etc/kafka/docker/log4j2.yaml "$root"/etc/kafka/docker/tools-log4j2.yaml
  echo 'appuser:x:1000:1000::/home/appuser:/bin/bash' >>"$root"/etc/passwd
  echo 'appuser:x:1000:' >>"$root"/etc/group
  chown -R 1000:1000 "$root"/opt/kafka/config "$root"/etc/kafka/docker "$root"/mnt/shared/config "$root"/var/lib/kafka
  tar -C "$root" --one-file-system -c . | docker import --change 'USER appuser' --change 'WORKDIR /' \
    --change 'EXPOSE 9092' --change 'VOLUME ["/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"]' \
    --change 'CMD ["/etc/kafka/docker/run"]' - "$image" >/dev/null
  rm -rf "$root"
}

if [[ -z "${LAPSE_OWN_ENGINE:-}" ]] && engine_answers && image_is_to_be_had; then
  say "using the engine that is there"
else
  if [[ $EUID -ne 0 ]]; then
    say "no Docker engine with $image, and an engine of one's own needs root"
    exit 1
  fi
  need dockerd docker.io
  need docker docker.io
  need debootstrap debootstrap
  # A short path: a socket's may have 107 characters.
  work="$(mktemp -d /tmp/lapse-engine.XXXXXX)"
  start_engine
  build_image
  # testcontainers' reaper is an image of its own, which cannot be pulled here; the engine goes with all that is in it.
  export TESTCONTAINERS_RYUK_DISABLED=true
fi
LAPSE_TEST_BROKER=docker "$python" -m pytest tests/integration/test_broker.py tests/integration/test_containers.py -v -m ""
say "the Docker path holds on engine $(docker version --format '{{.Server.Version}}')"
