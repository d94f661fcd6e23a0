"""The yardstick: what ``scripts/benchmark`` measures, and the pages made of what it recorded.

``values`` are the measurements, ``record`` keeps them, ``tables`` and ``pages`` show them. Each of
``latency``, ``tool``, ``startup``, ``growth`` and ``evaluator`` is a section; ``artifacts``,
``cell``, ``stages``, ``samples_growth`` and ``evaluator_cell`` are the processes that they start.
"""
