"""The crash drill: real processes under kills, freezes, cut connections, full memory, wrong clocks and deploys."""
