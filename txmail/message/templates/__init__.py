"""Messages with fields: `template` renders one, `compiled` many that differ in a few fields.

Begin with `template`. An `ITemplateEngine` reads the texts; `txmail.integrations.jinja2` is one.
"""
