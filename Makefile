# pveguard: see `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))
# The lab that `make site`, `make lab` and inventory/lab mean. Several can run side by side.
PVEGUARD_LAB ?= default

export PVEGUARD_LAB
export ANSIBLE_CONFIG := $(ROOT)/ansible.cfg
export PATH := $(ROOT)/.venv/bin:$(PATH)

bootstrap := $(ROOT)/scripts/bootstrap
lab := python -m lab --name $(PVEGUARD_LAB)

.PHONY: help base site assess export report observe probe restore recover revert test lint unit slow tests molecule campaign lab lab-down ssh bench lock docs clean

help: ## list the targets
	@echo 'make site [INVENTORY=...] [ARGS=...]   take the nodes to the protected state'
	@echo 'make test                              everything that CI runs'
	@echo
	@awk -F ' *## *' '/^[a-z-]+:.*## / { split($$1, name, ":"); printf "  %-10s %s\n", name[1], $$2 }' Makefile
	@echo
	@echo 'INVENTORY    real nodes, e.g. inventory/mine; without it the lab is started and used'
	@echo 'ARGS         more arguments for ansible-playbook, e.g. ARGS="--check --diff"'
	@echo 'LAB_ARGS     more arguments for "lab up", e.g. LAB_ARGS="--profile cluster"'
	@echo 'PVEGUARD_LAB name of the lab (default: default)'
	@echo 'PYTHON       Python 3.11, 3.12 or 3.13 for .venv (default: python3)'

site: $(if $(INVENTORY),base,lab) ## run site.yml, on the lab unless INVENTORY is given
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) site.yml $(ARGS)

assess: $(if $(INVENTORY),base,lab) ## read-only: what is there, and what site.yml would change
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/assess.yml $(ARGS)

gate: $(if $(INVENTORY),base,lab) ## measure disks and links, change nothing; reports/gate.html
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/gate.yml $(ARGS)

export: $(if $(INVENTORY),base,lab) ## write an inventory from live nodes: make export INVENTORY='pve1,'
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/export.yml $(ARGS)

report: $(if $(INVENTORY),base,lab) ## the report alone: reports/index.html
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/report.yml $(ARGS)

observe: $(if $(INVENTORY),base,lab) ## what a cluster writes and what its ring does, seen from its probe
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/observe.yml $(ARGS)

probe: $(if $(INVENTORY),base,lab) ## a probe joins or leaves: make probe ARGS="-e probe_state=present"
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/probe.yml $(ARGS)

join: $(if $(INVENTORY),base,lab) ## gate, then found or join the cluster, and no more
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/join.yml $(ARGS)

restore: $(if $(INVENTORY),base,lab) ## one node back to an earlier generation of its state
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/restore.yml $(ARGS)

recover: $(if $(INVENTORY),base,lab) ## what is wrong with a cluster, and one confirmed step after the other
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/recover.yml $(ARGS)

revert: $(if $(INVENTORY),base,lab) ## bring the nodes back to stock
	ansible-playbook -i $(or $(INVENTORY),inventory/lab) playbooks/revert.yml $(ARGS)

base:
	@$(bootstrap) base

test: ## everything that CI runs
	@$(bootstrap) base lab test
	scripts/ci

lint: ## ruff, mypy, yamllint, ansible-lint, shellcheck, generated tables
	@$(bootstrap) base test
	scripts/lint

# Nodes, loop devices and networks are a test's own, so files can run at once; they wait for real daemons much of the time,
# so three on two cores.
pytest := python -m pytest -q -n 3 --dist loadfile

unit: ## quick unit tests, less than a minute
	@$(bootstrap) base lab test
	$(pytest) -m 'not slow and not lab' $(ARGS)

# The longest files come early.
slow: ## the unit tests that take seconds each: minutes
	@$(bootstrap) base lab test
	$(pytest) --no-loadscope-reorder -m 'slow and not lab' $(ARGS)

# Collected once, and no core waits for the last file twice.
tests: ## unit and slow in one run
	@$(bootstrap) base lab test
	$(pytest) --no-loadscope-reorder -m 'not lab' $(ARGS)

SCENARIO ?= default corosync ha hardening
molecule: ## molecule scenarios on virtual machines (SCENARIO=default: that one)
	@$(bootstrap) base lab test
	@set -e; for scenario in $(SCENARIO); do \
	    echo "molecule test -s $$scenario $(ARGS)"; molecule test -s $$scenario $(ARGS); done

campaign: ## longer proofs on every profile of the lab, power cuts by the hundred: hours; figures in docs/figures.md
	@$(bootstrap) base lab test
	scripts/campaign

lab: ## start the lab's virtual machines
	@$(bootstrap) base lab
	$(lab) up $(LAB_ARGS)

lab-down: ## stop the lab
	@$(bootstrap) base lab
	$(lab) down

ssh: ## log in to a node of the lab: make ssh NODE=pve1
	@test -n "$(NODE)" || { echo 'usage: make ssh NODE=pve1' >&2; exit 2; }
	@$(lab) ssh $(NODE)

bench: ## count ssh round trips of a second run of site.yml
	@$(bootstrap) base
	python bench/round_trips.py $(if $(INVENTORY),--inventory $(INVENTORY)) $(ARGS)

lock: ## resolve requirements*.in anew and write the locks with hashes (Python 3.11)
	scripts/lock

docs: ## regenerate the variable tables of the roles' READMEs and docs/findings.md
	@$(bootstrap) base
	python scripts/role_docs.py
	python scripts/finding_docs.py

clean: ## stop all labs, remove what make created except reports/
	@if [ -d .lab ] && [ -x .venv/bin/python ]; then python -m lab down --all; fi
	rm -rf .lab .venv .bootstrap.lock .ansible .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
