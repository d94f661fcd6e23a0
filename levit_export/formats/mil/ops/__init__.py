"""One function per MIL op, in files split by meaning.

:mod:`levit_export.formats.mil.table` lists them.

A function takes the op's parameters under their MIL names, so its signature says which parameters
it knows, and returns new arrays. An op that only moves values (``exact`` in the table) may return
a view of its input. Float arrays are float32 (see :mod:`levit_export.formats.mil.elements`);
rounding a float16 result is the evaluator's work. Parameters that make no sense raise
``ValueError``, which the evaluator turns into a
:class:`~levit_export.core.errors.PackageError` that names op and package.
"""
