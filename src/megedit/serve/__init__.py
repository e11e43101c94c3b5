"""An edited model behind HTTP: OpenAI's routes, the edits as a resource, and a page to look at.

settings   what the operator chooses
store      the adapter that is served: its revisions, and changing it beside answering
jobs       changes that take long, with their progress
engine     answers to what is waiting, in batches that change while they run
prompts    from a request to token ids and the query in them
openai     OpenAI's routes
edits      the routes of the edits
guard      keys, limits, hosts and headers
metrics    counters for Prometheus
app        the application of these parts
run        the process: start, log, graceful stop
"""
