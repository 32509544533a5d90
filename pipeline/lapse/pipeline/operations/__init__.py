"""What operators do to a running Lapse: topics, policies, revocations, and watching the endings.

Everything here is a plain async function over `Settings`; the command line (`lapse.pipeline.cli`) only parses, asks and
prints. The submodules are imported by those who need them, so that asking for help does not load a Kafka client.
"""
