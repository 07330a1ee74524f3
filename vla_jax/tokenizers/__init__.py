"""Floor 4: plug-ins that turn an observation or a task into a token group, one file each with
`make` and `DEBUG`. Strangers to heads, objectives, data and envs; models builds them by name
and nobody else imports them.
"""
