"""Layers for image restoration: one idea a file, ``nn.Module``s on ``(b, c, h, w)`` maps of any size."""

from slicescan.layers.attention import MDTA
from slicescan.layers.bidirectional import BidirectionalMamba
from slicescan.layers.block import FeedForwardBlock, ScanBlock
from slicescan.layers.channel_attention import CAB, ChannelAttention
from slicescan.layers.cross_scan import SS2D
from slicescan.layers.feedforward import GatedDconvFFN
from slicescan.layers.fusion import AFF, KLFF
from slicescan.layers.inter_scan import InterScan
from slicescan.layers.local_mean import LocalMean2d
from slicescan.layers.mamba import Mamba
from slicescan.layers.naf import NAFBlock, SimpleChannelAttention
from slicescan.layers.norm import BiasFreeNorm2d, LayerNorm2d, with_body
from slicescan.layers.resample import Downsample, ShuffleDownsample, ShuffleUpsample, Upsample
from slicescan.layers.simple_gate import SimpleGate
from slicescan.layers.slice_scan import SliceScan2D
from slicescan.layers.vss import VSSBlock
from slicescan.layers.vssm import InterVSSM, IntraVSSM

__all__ = [
    "AFF",
    "BiasFreeNorm2d",
    "BidirectionalMamba",
    "CAB",
    "ChannelAttention",
    "Downsample",
    "FeedForwardBlock",
    "GatedDconvFFN",
    "InterScan",
    "InterVSSM",
    "IntraVSSM",
    "KLFF",
    "LayerNorm2d",
    "LocalMean2d",
    "MDTA",
    "Mamba",
    "NAFBlock",
    "SS2D",
    "ScanBlock",
    "ShuffleDownsample",
    "ShuffleUpsample",
    "SimpleChannelAttention",
    "SimpleGate",
    "SliceScan2D",
    "Upsample",
    "VSSBlock",
    "with_body",
]
