# Two commands matter: `make study` runs the default study on the built-in world, `make test` runs every test.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUDGET ?= default
STUDY ?= drivers
WORKERS ?= 2
# Two trainings side by side with all cores each wait for one another: half of the cores each is 1.5 times as fast.
HALF = OMP_NUM_THREADS=$(shell $(PYTHON) -c 'import os; print(max(1, (os.cpu_count() or 2) // 2))')

.PHONY: setup study test lab ui bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

study: setup
	@$(BIN)/python -m lvlm data shapes runs/data/shapes
	@case $(STUDY) in pivot_alignment|pivot_text) $(BIN)/python -m lvlm data sentences runs/data/sentences;; esac
	@case $(STUDY) in pivot_kind|pivot_native|pivot_text) $(BIN)/python -m lvlm data origins runs/data/origins;; esac
	@test $(STUDY) != translation_quality || test -e runs/data/shapes_mistakes || \
		$(BIN)/python -m lvlm data shapes runs/data/shapes_mistakes --mistakes 0.5
	@test $(STUDY) != tiling || $(BIN)/python -m lvlm data reading runs/data/reading
	@test $(STUDY) != text_in_image || test -e runs/data/text_in_image || \
		$(BIN)/python -m lvlm data reading runs/data/text_in_image --train 3280 --english 9000 \
			--test 200 --languages en de sw ru el
	@test $(STUDY) != answer_mix || { export $(HALF); \
		$(BIN)/python -m lvlm backbones --answer-mix 0 0.5 & \
		$(BIN)/python -m lvlm backbones --answer-mix 1 1.5 && wait $$!; }
	@test $(STUDY) != hundred_languages || { $(BIN)/python -m lvlm data emoji runs/data/emoji && export $(HALF) && { \
		$(BIN)/python -m lvlm backbones --corpus runs/data/emoji --out runs/backbones/emoji --parts vit & \
		$(BIN)/python -m lvlm backbones --corpus runs/data/emoji --out runs/backbones/emoji --parts lm && wait $$!; }; }
	@test $(STUDY) != paint_transfer || { $(BIN)/python -m lvlm data sentences runs/data/sentences && \
		$(BIN)/python -m lvlm data paint runs/data/paint && { test -e runs/data/paint_native || \
		$(BIN)/python -m lvlm data paint runs/data/paint_native --native --mismatch 0.25 --train 60 --tune 1 --test 1; }; }
	@status=0; $(BIN)/python -m sweeps launch $(STUDY) --workers $(WORKERS) --budget $(BUDGET) || status=$$?; \
	if test $$status != 2 && test -e "$${LVLM_HOME:-runs}/studies/$(STUDY)/results.parquet"; then \
		{ $(BIN)/python -m ablations report $(STUDY) && $(BIN)/python -m sweeps attach $(STUDY); } || status=$$?; \
	fi; exit $$status

test: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n auto --dist loadfile

lab: setup
	@$(BIN)/jupyter lab notebooks

ui: setup
	@$(BIN)/python -m sweeps ui

bench: setup
	@for file in throughput overhead memory startup rendering decoding evaluation mix_scale tracking; do $(BIN)/python tests/bench/$$file.py || exit 1; done
	@test ! -e runs/studies/drivers/results.parquet || $(BIN)/python tests/bench/sharing.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
