"""What rtnetlink says: links, addresses, routes, and the events that announce a change of them."""
