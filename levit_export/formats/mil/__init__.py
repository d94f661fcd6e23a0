"""A reference evaluator of Core ML ML Programs that runs on every operating system.

Core ML executes a model on Apple systems only. This package reads a saved ``.mlpackage`` from disk
and evaluates its program in NumPy, with the types and shapes that the program declares::

    import levit_export.mil as mil

    program = mil.load("levit.mlpackage")
    outputs = program.run({"input": image}, taps=("stage1_block0_attention_softmax",))

It is a *reference*: an op, a parameter or a value that it does not know is refused when the
package is loaded, never approximated. ``python -m levit_export.mil PACKAGE`` lists a program, and
says what of it is unsupported. Importing it imports neither coremltools nor PyTorch;
:func:`load` imports coremltools for its protocol-buffer classes.
"""

from __future__ import annotations

from levit_export.formats.mil.features import ArrayFeature, Feature, ImageFeature, OtherFeature
from levit_export.formats.mil.program import Program, load

__all__ = ["ArrayFeature", "Feature", "ImageFeature", "OtherFeature", "Program", "load"]
