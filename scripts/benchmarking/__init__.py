"""The yardstick: what ``scripts/benchmark`` measures, and the pages made of what it recorded.

``values`` are the measurements, ``record`` keeps them, ``tables`` and ``pages`` show them. Each of
``latency``, ``headline``, ``tool``, ``growth`` and ``evaluator`` measures a section, some in
processes of their own; so do ``cell`` and ``stages``, which ``latency`` and ``tool`` start.
"""
