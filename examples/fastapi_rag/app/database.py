"""The engine, and sessions that are one tenant's."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Header
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

engine = create_async_engine(os.environ["DATABASE_URL"])


async def tenant_session(x_tenant: Annotated[int, Header()]) -> AsyncIterator[AsyncSession]:
    """A transaction as the role that the policy applies to, for the tenant who calls."""
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("SET LOCAL ROLE notes_app"))
        await session.execute(
            text("SELECT set_config('app.tenant_id', :tenant, true)"), {"tenant": str(x_tenant)}
        )
        yield session


TenantSession = Annotated[AsyncSession, Depends(tenant_session)]
