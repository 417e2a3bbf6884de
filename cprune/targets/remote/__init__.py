"""Devices behind a wire: RPC, the tracker, adb."""
