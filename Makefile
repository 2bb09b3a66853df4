PYTHON ?= python3
BIN := .venv/bin
BENCHMARK := $(BIN)/python -m benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo inversion autoencoder deblur rescale test wheel docs docs-serve docs-test soak busy coverage \
	mutants lint format hooks \
	bench bench-full bench-borders bench-flow bench-fresh bench-inversion bench-autoencoder

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/ready  ## train a flow on real images, reconstruct them, draw samples
	$(BIN)/invconv train flow demo

inversion: .venv/ready  ## train two small classifiers and invert their layers: minutes; DATA=path/to.npz
	$(BIN)/invconv train classifier --network vgg $(if $(DATA),--data npz:$(DATA))
	$(BIN)/invconv train classifier --network resnet $(if $(DATA),--data npz:$(DATA))

sweep: export OMP_NUM_THREADS = 1
sweep: .venv/ready  ## every network of torchvision: is a layer refused, which are not undone exactly? half an hour
	$(BENCHMARK).inversion sweep --names

autoencoder: .venv/ready  ## train a pseudo-inverse autoencoder: a minute or two; DATA=path/to.npz
	$(BIN)/invconv train autoencoder demo $(if $(DATA),--data.source npz:$(DATA))

deblur: export OMP_NUM_THREADS = 1
deblur: .venv/ready  ## photographs of a shaken camera, restored with the borders that they have: a few minutes
	for border in valid zeros reflect; do \
		$(BIN)/invconv deblur --compare --border $$border --out runs/deblurred_$$border.png || exit 1; done

rescale: export OMP_NUM_THREADS = 1
rescale: .venv/ready  ## a layer learns to halve photographs so that its pseudo-inverse gives them back: two minutes
	$(BIN)/invconv rescale

test: export OMP_NUM_THREADS = 1
test: lint  ## everything that must hold
	$(BIN)/pytest -n 2

wheel: export OMP_NUM_THREADS = 1
wheel: .venv/ready  ## wheel and sdist, tried in environments of their own without and with each extra: minutes
	$(BIN)/pytest -m slow tests/test_package.py tests/test_types.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: export OMP_NUM_THREADS = 1
docs: .venv/docs-ready  ## the site, in build/site: all notebooks and code in pages run: minutes
	$(BIN)/python -m mkdocs build --strict

docs-serve: export NO_MKDOCS_2_WARNING = 1
docs-serve: .venv/docs-ready  ## the site while one writes, at http://127.0.0.1:8000
	$(BIN)/python -m mkdocs serve

docs-test: docs  ## the site in a browser: each page at two widths, menus, search, pictures of some pages
	$(BIN)/python docs/tools/browse.py

soak: .venv/ready  ## 2,000 training steps with random interruptions: minutes
	$(BIN)/pytest -m slow -s tests/layers/test_soak.py

busy: export OMP_NUM_THREADS = 1
busy: .venv/ready  ## threads and forks while all cores are kept busy, 200 times all ways to change a weight: hours
	$(BENCHMARK).freshness busy

coverage: export OMP_NUM_THREADS = 1
coverage: .venv/ready  ## the branches of the engine that its tests leave out: minutes
	$(BIN)/coverage run --branch --source=invconv/engine -m pytest tests/engine tests/layers
	$(BIN)/coverage report --show-missing --skip-covered --fail-under=95

mutants: export OMP_NUM_THREADS = 1
mutants: .venv/ready  ## tuned constants moved far, one at a time: which tests notice?
	$(BIN)/python tests/mutants.py

lint: .venv/ready  ## format, style, spelling, types, and which floor may use which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/ready  ## mend format and style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: .venv/ready  ## have git run the quick checks before each commit
	$(BIN)/pre-commit install

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.venv/docs-ready: .venv/ready
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

# The allocator keeps what it was given: otherwise page faults, not arithmetic, are what is measured.
bench bench-full bench-borders: export MALLOC_MMAP_THRESHOLD_ = 2000000000
bench bench-full bench-borders: export MALLOC_TRIM_THRESHOLD_ = 8000000000

bench: .venv/ready  ## the inverse, the log-det, a layer's and the flow's step, as ratios within one run: minutes
	$(BIN)/pip install --quiet --no-deps orthogonium einops
	$(BENCHMARK).speed ratios

bench-full: .venv/ready  ## all sizes, cost curves, accuracy; kept, and `make bench` is held against them: a quarter hour
	$(BIN)/pip install --quiet --no-deps orthogonium einops
	$(BENCHMARK).speed ratios --full --keep
	$(BENCHMARK).scaling --keep
	$(BENCHMARK).accuracy --keep

bench-borders: .venv/ready  ## real borders: against other solvers, scaling, a flow layer's step: half an hour
	$(BIN)/pip install --quiet deepinv pylops
	$(BENCHMARK).borders solvers --seconds 60
	$(BENCHMARK).borders scaling
	$(BENCHMARK).borders step
	$(BENCHMARK).borders picture

bench-flow: .venv/ready  ## bits/dim after ten minutes, five kinds of convolution, three seeds: 90 minutes; DATA=path/to.npz
	$(BENCHMARK).flows --seconds 600 --keep --data $(DATA)

bench-fresh: .venv/ready  ## the ways to change a weight, in the caches of others as well; what refreshing costs
	$(BIN)/pip install --quiet nflows pyro-ppl
	$(BENCHMARK).freshness caches
	$(BENCHMARK).freshness refresh
	$(BENCHMARK).freshness processes
	$(BENCHMARK).freshness shares
	$(BENCHMARK).freshness threads

bench-arrays: .venv/ready  ## images larger than memory, from file to file: minutes, 2.4 GB of disk
	$(BENCHMARK).arrays

bench-inversion: .venv/ready  ## feature inversion: networks, layers, starts; DATA=path/to.npz for the trained ones
	$(BENCHMARK).inversion layers $(if $(DATA),--data npz:$(DATA))
	$(BENCHMARK).inversion start --epochs 6 --seconds 1 $(if $(DATA),--data npz:$(DATA))

bench-autoencoder: .venv/ready  ## pseudo-inverse autoencoders, PCA, a learned decoder at equal code size: DATA=path/to.npz
	$(BENCHMARK).autoencoder $(if $(DATA),--data npz:$(DATA))
	$(BENCHMARK).autoencoder $(if $(DATA),--data npz:$(DATA)) --steps 1600 --rates 16 --methods widened --out runs/widened.png
