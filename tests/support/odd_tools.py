"""Tools that hang or end the process, for the tests of limits."""

import asyncio
import time


class OddTools:
    def hangs(self) -> str:
        """Hang."""
        time.sleep(30)
        return "late"

    async def hangs_async(self) -> str:
        """Hang."""
        await asyncio.sleep(30)
        return "late"

    def exits(self) -> str:
        """Exit."""
        raise SystemExit(0)

    def works(self) -> str:
        """Work."""
        return "done"
