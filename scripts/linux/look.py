"""Prints what drgn reads in a dump of a stock Linux (scripts/linux/debuggers.sh compares it)."""

from drgn.helpers.linux.nodemask import for_each_online_node
from drgn.helpers.linux.pid import for_each_task

print("release", prog["init_uts_ns"].name.release.string_().decode())
for nid in for_each_online_node(prog):
    node = prog["node_data"][nid]
    print("present", nid, node.node_present_pages.value_())
    print("managed", nid, sum(zone.managed_pages.counter.value_() for zone in node.node_zones))
for task in for_each_task(prog):
    print("task", task.pid.value_(), task.comm.string_().decode())
