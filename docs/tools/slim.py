"""A checkpoint without what only a training needs, for the pages: weights, and how the network is made.

Both that are in `docs/assets`:

    invconv train flow demo --data.source photos --data.image_size 16 --model.flow.init_args.scales 2 \
        --model.flow.init_args.hidden 64 --trainer.max_epochs 30 --trainer.max_time 00:00:08:00
    python docs/tools/slim.py runs/demo/version_0/checkpoints/last.ckpt docs/assets/flow.ckpt

    invconv train autoencoder demo --data.source photos
    python docs/tools/slim.py runs/autoencoder/version_0/checkpoints/epoch=7-step=600.ckpt docs/assets/autoencoder.ckpt
"""

import sys

import torch

KEPT = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "hyper_parameters")

source, target = sys.argv[1:]
full = torch.load(source, map_location="cpu", weights_only=True)
torch.save({key: full[key] for key in KEPT}, target)
