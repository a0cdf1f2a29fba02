"""Which algorithms there are, known without importing them: that takes torch."""

from domainbed.lib.registry import Registry

# The order of ALGORITHMS and so of every table: upstream's, then this project's.
ORDER = tuple(
    """
    ERM ERMPlusPlus Fish IRM GroupDRO Mixup MLDG CORAL MMD DANN CDANN MTL SagNet ARM
    VREx RSC SD ANDMask SANDMask IGA SelfReg Fishr TRM IB_ERM IB_IRM CAD CondCAD
    Transfer CausIRL_CORAL CausIRL_MMD EQRM RDM ADRMX URM

    DeiT HViT
    ZeroShotCLIP ZeroShotCLIPName LinearProbeCLIP LFA DPLCLIP QLoRACLIP QLoRALFA
    Head2ToeLinear Head2Toe VQT ARC ARC_att MAM UniPT SHERL LST HST BatchFormerCLIP
    CLIPAdapter CoOp CoCoOp MaPLe LFAonCLIPAdapter LFAonCoOp LFAonMaPLe
    TipAdapter TipAdapterF TaskRes LPPlusPlus CLAP GDA ProLIP
    LinearERM FineTuneCLIP MIRO T3A
    """.split()  # noqa: SIM905
)

REGISTRY = Registry("algorithm", ORDER)


def algorithm_names() -> list[str]:
    """ALGORITHMS of `domainbed.algorithms`, whether it is imported or not."""
    return [*REGISTRY.known()]


def runs_after(name: str) -> tuple[str, ...]:
    """The algorithms whose runs a sweep ends before that one's.

    UnknownNameError if there is none of that name or alias.
    """
    return REGISTRY.find(name)["AFTER"]
