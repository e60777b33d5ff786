# Everything that is done with this checkout. The first two need nothing but Debian 12 or 13 and say what they install.

VENV ?= .venv
export VENV
PY := $(VENV)/bin/python
export QT_QPA_PLATFORM ?= offscreen

.DEFAULT_GOAL := help
.PHONY: help demo test lint format package pictures screenshots docs bench fuzz test-debian13 install clean

help:  ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

demo: install  ## Make a sample image, run the three tools in QGIS on it, draw maps into demo_output/
	@$(PY) .ci/demo.py

test: install $(if $(ARGS),,lint)  ## Run lint and all tests; ARGS="tests/test_grid.py -k seam" runs those only
	$(PY) -m pytest $(ARGS)

lint: install  ## Check format, style and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy lunar_processing

format: install  ## Write the code in its one format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

package: install  ## Write the plugin's zip into dist/
	$(PY) .ci/package.py

pictures: install  ## Renew the pictures of the README from the maps of the demo
	$(PY) .ci/pictures.py

screenshots: install  ## Renew the pictures of the tour, from a QGIS window on a virtual screen; after `make demo`
	$(PY) .ci/screenshots.py

docs: install  ## Build the manual as a site into dist/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet -f .ci/mkdocs.yml && echo dist/site/index.html

bench: install  ## Measure speed and memory of the pipeline
	$(PY) -m benchmarks
	$(PY) -m benchmarks.anomalies speed
	$(PY) -m pytest -m slow --ignore tests/test_fuzz.py tests

fuzz: install  ## Damage 12,000 files at random and read them, some minutes; LUNAR_FUZZ=5000 tries ten times as many
	$(PY) -m pytest -m slow tests/test_fuzz.py

test-debian13:  ## Run the tests on Debian 13 with QGIS 3.40, in a folder that debootstrap makes (root); DEBIAN_SUITE=forky: 3.44
	.ci/debian13 test ARGS="$(or $(ARGS),tests)"

install:  ## Install QGIS (apt) and the virtual environment, as far as missing
	@.ci/install

clean:  ## Delete what was made here, except the virtual environment
	rm -rf build dist demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
