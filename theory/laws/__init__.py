"""Loss laws: what each one is as mathematics, and how it turns uniform words into losses. Imports no SymPy.

A law describes one packet on one link: its marginal loss probability, the tail of the age that losses in a row give a
replica, and a sampling rule. `Law` is a protocol: a class of yours with its three methods runs wherever a shipped law
does.
"""

from lossproof.theory.laws.bursty import GilbertElliott
from lossproof.theory.laws.independent import Bernoulli, PerSender
from lossproof.theory.laws.law import (
    Clock,
    Draw,
    Law,
    Mask,
    Memory,
    Number,
    Phase,
    Words,
    exact,
    probability,
    threshold,
)
from lossproof.theory.laws.outage import CommonOutage
from lossproof.theory.laws.renewal import HeavyTailed, Renewal
from lossproof.theory.laws.trace import Trace

__all__ = [
    "Bernoulli",
    "Clock",
    "CommonOutage",
    "Draw",
    "GilbertElliott",
    "HeavyTailed",
    "Law",
    "Mask",
    "Memory",
    "Number",
    "PerSender",
    "Phase",
    "Renewal",
    "Trace",
    "Words",
    "exact",
    "probability",
    "threshold",
]
