"""rtnetlink: links, addresses, routes, rules, and the events that announce their changes."""
