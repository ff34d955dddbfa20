# `make help` lists what there is. Every target sets up what it needs; a second call installs nothing.
PRESET ?= cpu
VARIANT ?= baseline
VARIANTS ?=
SEEDS ?=
LEARNING_RATES ?=
INIT ?=
EXPERIMENTS ?=
CHECKPOINT ?=
OUT ?= .
PROMPT ?= KING HENRY
PYTHON ?= python3

BIN := .venv/bin
STUDY = $(BIN)/gpt2-ablate ablate --out "$(OUT)" $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(LEARNING_RATES),--learning-rates="$(LEARNING_RATES)") $(if $(INIT),--init "$(INIT)") $(if $(EXPERIMENTS),--experiments "$(EXPERIMENTS)")

.DEFAULT_GOAL := help
.PHONY: help install ablate-all ablate smoke report sample verify tensorboard bench test lint clean

help: ## this list
	@echo 'make TARGET [PRESET=cpu] [VARIANTS=baseline,rope] [SEEDS=0,1] [LEARNING_RATES=1e-3,2e-3,4e-3] [INIT=checkpoint] [EXPERIMENTS=folder] [OUT=folder]'; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: .venv/installed ## set up .venv (done by every other target too)

# Pinned to the versions that the tests passed with. The stamp is renewed when what it depends on changes.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not there; install Python 3.11 or newer, or give PYTHON=" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is too old; give PYTHON=python3.11 or newer" >&2; exit 2; }
	@echo "Setting up .venv (once; about 2 minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

ablate-all: install ## train all variants of the preset and write the report
	@$(STUDY) --preset "$(PRESET)" $(if $(VARIANTS),--variants "$(VARIANTS)")

ablate: install ## train one, VARIANT=rope-gqa; the report holds what else is trained already
	@$(STUDY) --preset "$(PRESET)" --variants "$(VARIANT)"

smoke: install ## all variants, tiny, end to end, in a minute
	@$(STUDY) --preset smoke

report: install ## write the report again from reports/results.json
	@$(BIN)/gpt2-ablate report --out "$(OUT)"

sample: install ## let a model write: VARIANT=rope, or CHECKPOINT=gpt2, PROMPT="KING HENRY"
	@$(BIN)/gpt2-ablate sample "$(or $(CHECKPOINT),$(OUT)/checkpoints/$(PRESET)/$(VARIANT)/seed-0)" --prompt "$(PROMPT)"

verify: install ## prove that the model is GPT-2: reports/verification.md
	@$(BIN)/gpt2-ablate verify $(if $(CHECKPOINT),"$(CHECKPOINT)") --out "$(OUT)"

tensorboard: install ## curves of all runs, in the browser
	@$(BIN)/tensorboard --logdir "$(OUT)/reports/tensorboard"

bench: install ## speed and memory beside transformers, reports/benchmarks.md; QUICK=1 in three minutes
	@$(BIN)/gpt2-ablate bench --out "$(OUT)" $(if $(QUICK),--quick)

test: lint ## lint, types and tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## remove all that studies and tools leave behind, but for .venv, reference reports and weights of others
	@for study in checkpoints/*/; do [ ! -e "$$study.lock" ] || rm -rf "$$study"; done
	@rm -rf reports/figures reports/tensorboard reports/analysis.md reports/results.json reports/verification.md reports/benchmarks.*
	@rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
