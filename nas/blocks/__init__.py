"""The classic blocks as frozen dataclasses of hyperparameters."""

from nas.blocks.base import Block, Branches, Chain, Stage, block_from_json, block_to_json, channels, make_divisible
from nas.blocks.cell import Cell, CellNetwork, CellNode, Edge
from nas.blocks.conv import Conv, Fire, MlpConv, Skip, SqueezeExcite
from nas.blocks.dense import Dense, DenseBlock, Transition
from nas.blocks.edges import DilConv, FactorizedSkip, PreConv, RowColumnConv, SepConv
from nas.blocks.inception import Fractal, Inception, InceptionModule
from nas.blocks.mobile import FusedInvertedResidual, Ghost, InvertedResidual, Separable, ShuffleUnit
from nas.blocks.pool import AvgPool, DenseHead, Dropout, GlobalPool, Head, MaxPool, Norm, PoolHead, Wrap
from nas.blocks.residual import Bottleneck, Residual

__all__ = [
    "AvgPool", "Block", "Bottleneck", "Branches", "Cell", "CellNetwork", "CellNode", "Chain", "Conv", "Dense",
    "DenseBlock", "DenseHead", "DilConv", "Dropout", "Edge", "FactorizedSkip", "Fire", "Fractal",
    "FusedInvertedResidual", "Ghost", "GlobalPool", "Head", "Inception", "InceptionModule", "InvertedResidual",
    "MaxPool", "MlpConv", "Norm", "PoolHead", "PreConv", "Residual", "RowColumnConv", "SepConv", "Separable",
    "ShuffleUnit", "Skip", "SqueezeExcite", "Stage", "Transition", "Wrap", "block_from_json", "block_to_json",
    "channels", "make_divisible",
]  # fmt: skip
