"""The contract of plug-ins: what every method, network, data set and validator must keep to.

``sfuda-bench plugin test NAME`` and the project's own tests run the same checks: an *invariant*
looks at results that a *laboratory* computes on a bench of toy domains, as they are and after
something that must not matter was changed.
"""
