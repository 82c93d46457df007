"""AgentDojo's four task suites as environments, with its own tools, errors and utility checks.

Only `suites` may be imported at the top of modules outside this package: the others need the package agentdojo.
"""
