from lapse.pipeline.cli import main

main()
