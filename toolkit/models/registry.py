"""Which models there are, what can be set on each, and where their code is. Does not import torch.

A new model is one file of cells, one options class here and one line in `MODELS`. The options of a model stand apart
from its code so that a login node can check a config without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

LARGEST = 4096  # of channels, layers, patches: what is larger fits into no memory
Positive = Annotated[int, Field(ge=1, le=LARGEST)]


class Options(BaseModel):
    """Base of every options and config class: frozen, typed; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @property
    def tile(self) -> int:
        """Of a model: frames' sides are padded to a multiple of it. Costs grow with the number of tiles."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Of a model: whether the members of an ensemble differ; a deterministic model makes one forecast."""
        return False


class StepOptions(Options):
    """What all recurrent next-frame models share."""

    layers: int = Field(4, ge=1, le=LARGEST, description="stacked recurrent cells (paper: 4)")
    hidden: int = Field(64, ge=1, le=LARGEST, description="channels of each cell's hidden state (paper: 64)")
    patch: int = Field(
        4, ge=1, le=LARGEST, description="space-to-depth factor; sizes it doesn't divide are padded and cropped"
    )

    @property
    def tile(self) -> int:
        return self.patch


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"must be odd, an even kernel shifts the image: use {kernel - 1} or {kernel + 1}")
    return kernel


OddKernel = Annotated[int, Field(ge=1, le=255), AfterValidator(_odd)]


FUSION = '`equal` adds the slots with equal weights: the paper\'s ablation "w/o adaptive slot fusion"'


class ModeRNNOptions(StepOptions):
    """ModeRNN by the paper's text (equations 1-5); see toolkit/models/modernn.py for the reading of each."""

    name: Literal["modernn"] = "modernn"
    slots: int = Field(
        4,
        ge=1,
        le=LARGEST,
        description="N; a width that N doesn't divide gives slots of ceil(width / N) channels; 1 is the paper's "
        'ablation "w/o slot binding"',
    )
    fusion: Literal["adaptive", "equal"] = Field("adaptive", description=FUSION)
    gate_norm: bool = Field(False, description="per-sample channel-affine normalisation of the four gates")
    forget_bias: float = Field(1.0, ge=-100, le=100, description="start value of the forget gate's bias (W_fi)")
    sample_at_eval: bool = Field(False, description="draw the slot bus at evaluation too instead of taking its mean")

    @property
    def stochastic(self) -> bool:
        return self.sample_at_eval


class ConvLSTMOptions(StepOptions):
    """Stacked next-frame ConvLSTM (Shi et al. 2015)."""

    name: Literal["convlstm"] = "convlstm"
    kernel: OddKernel = Field(5, description="odd kernel size of the gate convolution")
    bias: bool = Field(False, description="biases in the gate convolutions")
    forget_bias: float = Field(1.0, ge=-100, le=100, description="constant added to the forget gate before its sigmoid")
    peepholes: bool = Field(False, description="peepholes of the 2015 paper; they tie the weights to one frame size")


class ReleasedModeRNNOptions(StepOptions):
    """ModeRNN by the wiring of its authors' released code; see toolkit/models/modernn_released.py."""

    name: Literal["modernn_released"] = "modernn_released"
    slots: int = Field(
        4, ge=1, le=LARGEST, description='N; must divide 2 x hidden; 1 is the paper\'s ablation "w/o slot binding"'
    )
    fusion: Literal["adaptive", "equal"] = Field("adaptive", description=FUSION)
    conv_norm: Literal["sample", "batch"] = Field(
        "sample",
        description="normalisation in the separable convolutions: of each sample, or of the micro-batch as in the "
        "released code's training (results then depend on how a batch is split)",
    )

    @field_validator("slots")
    @classmethod
    def _divides(cls, slots: int, info: ValidationInfo) -> int:
        width = 2 * info.data.get("hidden", slots)
        if width % slots:
            raise ValueError(
                f"must divide 2 x hidden = {width}, the released code splits it evenly: "
                "change one of them, or use modernn, which takes any number"
            )
        return slots


class PredRNNOptions(StepOptions):
    """PredRNN (Wang et al. 2017), and PredRNN-V2's decoupling loss (Wang et al. 2021)."""

    name: Literal["predrnn"] = "predrnn"
    kernel: OddKernel = Field(7, description="odd kernel size (7: the size that the ModeRNN paper's count gives)")
    layer_norm: bool = Field(False, description="normalise every convolution's output per sample, at any size")
    decouple_beta: float = Field(
        0.0, ge=0, le=1e6, description="weight of the decoupling loss (PredRNN-V2: 0.01 to 0.1)"
    )


class MIMOptions(StepOptions):
    """Memory In Memory (Wang et al. 2019)."""

    name: Literal["mim"] = "mim"
    layers: int = Field(4, ge=2, le=LARGEST, description="the first is an ST-LSTM, the others are MIM blocks")
    kernel: OddKernel = Field(7, description="odd kernel size (7: the size that the ModeRNN paper's count gives)")
    layer_norm: bool = Field(False, description="normalise every convolution's output per sample, at any size")
    peepholes: bool = Field(False, description="peepholes of MIM-N and MIM-S; they tie the weights to one frame size")
    initialisation: Literal["torch", "published"] = Field(
        "torch",
        description="initial weights: PyTorch's defaults, or the authors' (uniform by channels)",
    )


class ConvTTLSTMOptions(StepOptions):
    """Convolutional Tensor-Train LSTM (Su et al. 2020), and the ConvLSTM of the same shape that it is compared with."""

    name: Literal["conv_tt_lstm"] = "conv_tt_lstm"
    layers: int = Field(4, ge=1, le=LARGEST, description="cells in each block")
    blocks: tuple[Positive, ...] = Field(
        (1,), min_length=1, description="width of each block of cells, in multiples of `hidden` (Su et al.: 2, 3, 3, 2)"
    )
    skip: int = Field(0, ge=0, le=LARGEST, description="join the outputs of blocks `skip` apart; 0: don't")
    kernel: OddKernel = Field(5, description="odd kernel size")
    cell: Literal["tt", "lstm"] = Field("tt", description="`lstm`: ConvLSTM cells instead, in the same net")
    order: int = Field(3, ge=1, le=LARGEST, description="cores of the tensor train")
    steps: int = Field(3, ge=1, le=LARGEST, description="past hidden states that a cell sees; at least `order`")
    rank: int = Field(8, ge=1, le=LARGEST, description="channels between the cores")
    forget_bias: float = Field(0.0, ge=-100, le=100, description="constant added to the forget gate before its sigmoid")
    sigmoid: bool = Field(False, description="a sigmoid after the read-out (Su et al. on KTH)")

    @field_validator("skip")
    @classmethod
    def _reaches(cls, skip: int, info: ValidationInfo) -> int:
        blocks = len(info.data.get("blocks", ()))
        if skip and skip >= blocks > 0:
            raise ValueError(f"reaches back over all {blocks} blocks: use less than {blocks}, or 0 for no connection")
        return skip

    @field_validator("steps")
    @classmethod
    def _fills_the_order(cls, steps: int, info: ValidationInfo) -> int:
        order = info.data.get("order", 1)
        if steps < order:
            raise ValueError(f"is less than order = {order}, every core needs a state of its own: raise it to {order}")
        return steps


class RIMOptions(StepOptions):
    """Convolutional Recurrent Independent Mechanisms (after Goyal et al. 2021); see toolkit/models/rim.py."""

    name: Literal["rim"] = "rim"
    hidden: int = Field(
        192, ge=1, le=LARGEST, description="hidden channels of a layer; each module has ceil(hidden / modules)"
    )
    modules: int = Field(6, ge=1, le=LARGEST, description="independent recurrent modules in each layer")
    active: int = Field(4, ge=1, le=LARGEST, description="modules that are updated at a time step; at most `modules`")
    kernel: OddKernel = Field(5, description="odd kernel size of the modules' gate convolutions")
    value: int = Field(64, ge=1, le=LARGEST, description="channels that a module reads from the input")
    input_key: int = Field(64, ge=1, le=LARGEST, description="channels of a key of the input attention")
    heads: int = Field(4, ge=1, le=LARGEST, description="heads of the communication attention")
    message_key: int = Field(32, ge=1, le=LARGEST, description="channels of a key of the communication attention")
    forget_bias: float = Field(1.0, ge=-100, le=100, description="constant added to the forget gate before its sigmoid")

    @field_validator("active")
    @classmethod
    def _are_there(cls, active: int, info: ValidationInfo) -> int:
        modules = info.data.get("modules", active)
        if active > modules:
            raise ValueError(f"is more than modules = {modules}: lower it, or raise model.modules")
        return active


class TrajGRUOptions(Options):
    """TrajGRU encoder-forecaster (Shi et al. 2017)."""

    name: Literal["trajgru"] = "trajgru"
    hidden: tuple[Positive, ...] = Field((64, 192, 192), min_length=1, description="channels of each layer's state")
    flows: tuple[Positive, ...] = Field((13, 13, 9), description="L, the flow fields of each layer")
    strides: tuple[Positive, ...] = Field(
        (4, 3, 2), description="down-sampling before each layer; their product should divide the frames, else they pad"
    )
    stem: int = Field(8, ge=1, le=LARGEST, description="channels between the frame and the first layer")
    flow_hidden: int = Field(32, ge=1, le=LARGEST, description="channels inside the network that generates the flows")

    @field_validator("flows", "strides")
    @classmethod
    def _one_each(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        layers = len(info.data.get("hidden", values))
        if len(values) != layers:
            raise ValueError(f"has {len(values)} entries, hidden has {layers}: give one for each layer")
        return values

    @property
    def tile(self) -> int:
        return math.prod(self.strides)


class SVGOptions(Options):
    """SVG-LP, stochastic video generation with a learned prior (Denton & Fergus 2018)."""

    name: Literal["svg_lp"] = "svg_lp"
    size: int = Field(
        64, ge=8, le=LARGEST, description="side of the encoder's square, a power of two; smaller frames are padded"
    )
    backbone: Literal["dcgan", "vgg"] = Field("dcgan", description="convolutions of the encoder and decoder")
    width: int = Field(
        64, ge=1, le=LARGEST, description="channels of the first level; later ones double up to 8 times that"
    )
    latent: int = Field(128, ge=1, le=LARGEST, description="length of a frame's code (g_dim)")
    z: int = Field(10, ge=1, le=LARGEST, description="length of the random variable of a time step")
    rnn: int = Field(256, ge=1, le=LARGEST, description="hidden units of each LSTM")
    predictor_layers: int = Field(2, ge=1, le=LARGEST, description="stacked LSTMs of the predictor")
    posterior_layers: int = Field(1, ge=1, le=LARGEST, description="stacked LSTMs of the posterior")
    prior_layers: int = Field(1, ge=1, le=LARGEST, description="stacked LSTMs of the prior")
    beta: float = Field(1e-4, ge=0, le=1e6, description="weight of KL(posterior || prior)")
    initialisation: Literal["torch", "published"] = Field(
        "torch",
        description="initial weights: PyTorch's defaults, or the authors' (N(0, 0.02) outside of the LSTMs)",
    )
    sample_batch: int = Field(
        128,
        ge=1,
        le=LARGEST,
        description="forecasts made at once in prediction: memory only",
        json_schema_extra={"identity": False},
    )

    @field_validator("size")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            below = 1 << (size.bit_length() - 1)
            raise ValueError(f"must be a power of two, every level halves it: use {below} or {2 * below}")
        return size

    @property
    def tile(self) -> int:
        return self.size

    @property
    def stochastic(self) -> bool:
        return True


class SimVPOptions(Options):
    """SimVP with gated spatiotemporal attention (Tan et al. 2022); not recurrent."""

    name: Literal["simvp"] = "simvp"
    frames: int = Field(10, ge=1, le=LARGEST, description="frames into and out of one pass; at most data.context")
    spatial_hidden: int = Field(64, ge=2, le=LARGEST, multiple_of=2, description="channels of the two coders (hid_S)")
    spatial_layers: int = Field(
        4, ge=2, le=32, multiple_of=2, description="layers of each; every second halves the size (N_S)"
    )
    hidden: int = Field(512, ge=1, le=LARGEST, description="channels of the translator (hid_T)")
    layers: int = Field(8, ge=2, le=LARGEST, description="blocks of the translator (N_T)")
    mlp_ratio: int = Field(8, ge=1, le=LARGEST, description="width of a block's feed-forward part over the block's")

    @property
    def tile(self) -> int:
        return 1 << self.spatial_layers // 2


class PersistenceOptions(Options):
    """Persistence: every predicted frame equals the last context frame; no parameters."""

    name: Literal["persistence"] = "persistence"


class OpticalFlowOptions(Options):
    """Lagrangian persistence: move the last frame along its optical flow. Nothing to train."""

    name: Literal["optical_flow"] = "optical_flow"
    pairs: int = Field(3, ge=1, le=LARGEST, description="pairs of last frames that give the motion, at most")
    sigma: float = Field(6.0, gt=0, le=LARGEST, description="standard deviation of the Gaussian window, in pixels")
    coarsest: int = Field(12, ge=1, le=LARGEST, description="the pyramid stops before a side gets shorter than this")
    iterations: int = Field(4, ge=1, le=LARGEST, description="refinements at each level")
    damping: float = Field(
        1e-3, gt=0, le=1e6, description="pull towards the coarser level's flow where there is no texture"
    )
    outside: Literal["zeros", "border"] = Field("border", description="what moves in from beyond the frame")


class PystepsOptions(Options):
    """Extrapolation nowcast by pysteps; needs `pip install '.[pysteps]'`. Nothing to train."""

    name: Literal["pysteps"] = "pysteps"
    frames: int = Field(3, ge=2, le=LARGEST, description="last frames that the motion is taken from, at most")


class StepsOptions(Options):
    """Ensemble nowcast by pysteps' STEPS; needs `pip install '.[pysteps]'`. Nothing to train."""

    name: Literal["steps"] = "steps"
    threshold: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="what is below counts as no rain, as a part of the store's range (7 dBZ of 0 to 63.5: 0.11)",
    )
    levels: int = Field(6, ge=3, le=32, description="levels of the cascade of spatial scales")
    kilometres: float = Field(1.0, gt=0, le=1e3, description="size of a pixel; scales the perturbations of the motion")
    minutes: float = Field(5.0, gt=0, le=1e3, description="time step; scales the perturbations of the motion")

    @property
    def stochastic(self) -> bool:
        return True


ModelOptions = Annotated[
    ModeRNNOptions
    | ConvLSTMOptions
    | ReleasedModeRNNOptions
    | PredRNNOptions
    | MIMOptions
    | ConvTTLSTMOptions
    | RIMOptions
    | TrajGRUOptions
    | SVGOptions
    | SimVPOptions
    | PersistenceOptions
    | OpticalFlowOptions
    | PystepsOptions
    | StepsOptions,
    Field(discriminator="name"),
]


@dataclass(frozen=True)
class ModelEntry:
    """Where a model's code is and what it implements."""

    code: str  # module:class, imported only when the model is built
    options: type[Options]
    title: str
    paper: str
    trained: bool = True  # False: no parameters; a run of it is done at step 0 and only evaluated


_PYSTEPS = "toolkit.models.pysteps_nowcast"

MODELS: dict[str, ModelEntry] = {
    "modernn": ModelEntry("toolkit.models.modernn:ModeRNN", ModeRNNOptions, "ModeRNN", "Yao et al., arXiv 2110.03882"),
    "convlstm": ModelEntry("toolkit.models.convlstm:ConvLSTM", ConvLSTMOptions, "ConvLSTM", "Shi et al., NeurIPS 2015"),
    "modernn_released": ModelEntry(
        "toolkit.models.modernn_released:ReleasedModeRNN",
        ReleasedModeRNNOptions,
        "ModeRNN (released code)",
        "Yao et al., arXiv 2110.03882",
    ),
    "predrnn": ModelEntry("toolkit.models.predrnn:PredRNN", PredRNNOptions, "PredRNN", "Wang et al., NeurIPS 2017"),
    "mim": ModelEntry("toolkit.models.mim:MIM", MIMOptions, "MIM", "Wang et al., CVPR 2019"),
    "conv_tt_lstm": ModelEntry(
        "toolkit.models.conv_tt_lstm:ConvTTLSTM", ConvTTLSTMOptions, "Conv-TT-LSTM", "Su et al., NeurIPS 2020"
    ),
    "rim": ModelEntry("toolkit.models.rim:RIM", RIMOptions, "RIM (convolutional)", "Goyal et al., ICLR 2021"),
    "trajgru": ModelEntry("toolkit.models.trajgru:TrajGRU", TrajGRUOptions, "TrajGRU", "Shi et al., NeurIPS 2017"),
    "svg_lp": ModelEntry("toolkit.models.svg:SVG", SVGOptions, "SVG-LP", "Denton & Fergus, ICML 2018"),
    "simvp": ModelEntry("toolkit.models.simvp:SimVP", SimVPOptions, "SimVP (gSTA)", "Tan et al., arXiv 2211.12509"),
    "persistence": ModelEntry(
        "toolkit.models.baselines:Persistence", PersistenceOptions, "persistence", "last frame", False
    ),
    "optical_flow": ModelEntry(
        "toolkit.models.baselines:OpticalFlow", OpticalFlowOptions, "optical flow", "Lucas & Kanade, IJCAI 1981", False
    ),
    "pysteps": ModelEntry(
        f"{_PYSTEPS}:Pysteps", PystepsOptions, "pysteps extrapolation", "Pulkkinen et al., GMD 12, 2019", False
    ),
    "steps": ModelEntry(f"{_PYSTEPS}:Steps", StepsOptions, "STEPS (pysteps)", "Bowler et al., QJRMS 132, 2006", False),
}
