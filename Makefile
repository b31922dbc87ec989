# Every target makes the environment it needs in .venv first (requirements/environment.sh); nothing needs root or an
# activated environment. PYTHON=/path/to/python3.11 chooses the interpreter; else a 3.11 or 3.10 is searched for.
.DEFAULT_GOAL := help
.PHONY: help demo test slow long check format lock environment interop clean
# With bytecode kept, the many processes that tests start need not compile every module anew.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE VIRTUAL_ENV
export PYTHON

environment := sh requirements/environment.sh
# All optional parts, so that the tests leave none of them out.
tools := dev huggingface mlflow notebooks onnx ray tfds wandb
run := .venv/bin/python -m
# A module's tests stay in one process, because they share what its fixtures made. The slowest are told at the end.
parallel := -n 2 --dist=loadfile --durations=30

help: ## Show this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z]*\): ## \(.*\)/  \1                \2/; s/^\(  [a-z ]\{14\}\) */\1/p' Makefile

demo: ## From nothing to a trained private model on miniature data, in minutes
	@$(environment)
	@$(run) benchmark.demo_main

test: ## Run the tests, save the slow ones
	@$(environment) $(tools)
	@$(run) pytest $(parallel) -m "not slow and not long"

slow: ## Run the slow tests, those that train
	@$(environment) $(tools)
	@$(run) pytest tests $(parallel) -m "slow and not long" --timeout=1800

long: ## Run the tests that take many minutes, which CI leaves out
	@$(environment) $(tools)
	@$(environment) interop
	@$(run) pytest tests $(parallel) -m long --timeout=3600

check: ## Check style, types, and that the pins agree with pyproject.toml
	@$(environment) $(tools)
	$(run) ruff check
	$(run) ruff format --check
	$(run) mypy
	.venv/bin/python requirements/lock.py --check

format: ## Put the code into its standard form
	@$(environment) $(tools)
	$(run) ruff check --fix
	$(run) ruff format

lock: ## Pin what pyproject.toml asks for; UPGRADE=--upgrade takes the newest of everything
	@$(environment) $(tools)
	.venv/bin/python requirements/lock.py $(UPGRADE)

environment: ## Make .venv; EXTRAS="huggingface ray" adds what these optional parts need
	@$(environment) $(EXTRAS)

interop: ## Make .venv-interop: other people's tools, for the long tests of flair.export
	@$(environment) interop

clean: ## Remove .venv, .venv-interop, the demo and all caches
	rm -rf .venv .venv-interop demo .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find flair benchmark tests requirements -name __pycache__ -type d -prune -exec rm -rf {} +
