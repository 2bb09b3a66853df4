PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test soak lint format bench bench-full bench-borders bench-flow bench-fresh bench-inversion bench-autoencoder inversion autoencoder

demo: .venv/ready  ## train a flow on real images, reconstruct them, draw samples
	$(BIN)/python examples/flow/train.py demo

inversion: .venv/ready  ## train two small classifiers and invert their layers: minutes; DATA=path/to.npz
	$(BIN)/python examples/classifier/train.py --network vgg $(if $(DATA),--data npz:$(DATA))
	$(BIN)/python examples/classifier/train.py --network resnet $(if $(DATA),--data npz:$(DATA))

autoencoder: .venv/ready  ## train a pseudo-inverse autoencoder: a minute or two; DATA=path/to.npz
	$(BIN)/python examples/autoencoder/train.py demo $(if $(DATA),--data.source npz:$(DATA))

test: export OMP_NUM_THREADS = 1
test: lint  ## everything that must hold
	$(BIN)/pytest -n 2

soak: .venv/ready  ## 2,000 training steps with random interruptions: minutes
	$(BIN)/pytest -m slow -s tests/test_soak.py

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# The allocator keeps what it was given: otherwise page faults, not arithmetic, are what is measured.
bench: export MALLOC_MMAP_THRESHOLD_ = 2000000000
bench: export MALLOC_TRIM_THRESHOLD_ = 8000000000
bench: .venv/ready  ## the inverse, the log-det, a layer's and the flow's step, as ratios within one run: minutes
	$(BIN)/pip install --quiet --no-deps orthogonium einops
	$(BIN)/python benchmarks/speed.py

bench-full: export MALLOC_MMAP_THRESHOLD_ = 2000000000
bench-full: export MALLOC_TRIM_THRESHOLD_ = 8000000000
bench-full: .venv/ready  ## all sizes, cost curves, accuracy; kept, and `make bench` is held against them: a quarter hour
	$(BIN)/pip install --quiet --no-deps orthogonium einops
	$(BIN)/python benchmarks/speed.py --full --keep
	$(BIN)/python benchmarks/curves.py --keep
	$(BIN)/python benchmarks/accuracy.py --keep

bench-borders: export MALLOC_MMAP_THRESHOLD_ = 2000000000
bench-borders: export MALLOC_TRIM_THRESHOLD_ = 8000000000
bench-borders: .venv/ready  ## real borders: against other solvers, scaling, a flow layer's step: half an hour
	$(BIN)/pip install --quiet deepinv pylops
	$(BIN)/python benchmarks/borders.py --seconds 60
	$(BIN)/python benchmarks/border_scaling.py
	$(BIN)/python benchmarks/border_step.py
	$(BIN)/python benchmarks/border_picture.py

bench-flow: .venv/ready  ## bits/dim after ten minutes, five kinds of convolution, three seeds: 90 minutes; DATA=path/to.npz
	$(BIN)/python benchmarks/bits_per_dim.py --seconds 600 --keep --data $(DATA)

bench-fresh: .venv/ready  ## the ways to change a weight, in the caches of others as well; what refreshing costs
	$(BIN)/pip install --quiet nflows pyro-ppl
	$(BIN)/python benchmarks/freshness.py
	$(BIN)/python benchmarks/refresh.py
	$(BIN)/python benchmarks/processes.py

bench-inversion: .venv/ready  ## feature inversion: networks, layers, starts; DATA=path/to.npz for the trained ones
	$(BIN)/python benchmarks/inversion.py $(if $(DATA),--data npz:$(DATA))
	$(BIN)/python benchmarks/inversion_start.py --epochs 6 --seconds 1 $(if $(DATA),--data npz:$(DATA))

bench-autoencoder: .venv/ready  ## pseudo-inverse autoencoders, PCA, a learned decoder at equal code size: DATA=path/to.npz
	$(BIN)/python benchmarks/autoencoder.py $(if $(DATA),--data npz:$(DATA))
	$(BIN)/python benchmarks/autoencoder.py $(if $(DATA),--data npz:$(DATA)) --steps 1600 --rates 16 --methods widened --out runs/widened.png
